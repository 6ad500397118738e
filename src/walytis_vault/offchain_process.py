"""The process that reads an old store: `python -m walytis_vault.offchain_process`, started by `offchain`.

Its job comes as one JSON line on stdin; its answers go to the stdout that it was started with, each a MessagePack
value after its length (8 bytes, big-endian). The libraries of the old store live and die here.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec

from walytis_vault.domain.errors import VaultError


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to read. Paths are absolute."""

    source: str
    key: str
    group_keys: str | None = None
    blocks: str | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """It cannot go on."""

    code: str
    message: str


class Found(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    """One block, as `adapters.identity.offchain_store.OldBlock`."""

    block: dict[str, Any]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """That was all."""


Answer = Failed | Found | Done


def main() -> NoReturn:
    """Do the job; end the process at once, whatever threads the libraries keep."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    code = 0
    try:
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        with tempfile.TemporaryDirectory(prefix="offchain-") as temporary:
            _read(job, Path(temporary), answers)
        _say(answers, Done())
    except VaultError as e:
        _say(answers, Failed(code=e.code, message=str(e)))
        code = 1
    except Exception as e:  # the parent must hear of a defect too
        _say(answers, Failed(code=VaultError.code, message=f"the old store cannot be read: {type(e).__name__}: {e}"))
        code = 1
    answers.flush()
    os._exit(code)


def _read(job: Job, temporary: Path, answers: IO[bytes]) -> None:
    from walytis_vault.adapters.identity import offchain_store

    store = offchain_store.find_store(
        Path(job.source),
        group_keys=None if job.group_keys is None else Path(job.group_keys),
        key=Path(job.key),
        blocks=None if job.blocks is None else Path(job.blocks),
    )
    offchain_store.prepare(temporary)
    for block in offchain_store.read_store(store, temporary):
        _say(answers, Found(block=msgspec.structs.asdict(block)))


def _say(answers: IO[bytes], answer: Answer) -> None:
    data = msgspec.msgpack.encode(answer)
    answers.write(len(data).to_bytes(8, "big") + data)


if __name__ == "__main__":
    main()
