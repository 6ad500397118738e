"""The node's own process: `python -m walytis_vault.process`, started by `node`, never by hand.

The first line on stdin is the job as JSON (so that no passphrase stands in a command line); then stdin stays
open as a lifeline: when it closes, the parent is gone or wants us to stop. Answers are JSON lines on the stdout
that we were started with; file descriptor 1 itself is pointed away, so that no library can write to it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Final, Literal, NoReturn

import msgspec

from walytis_vault import logs
from walytis_vault.domain.errors import VaultError
from walytis_vault.fetching import FetchWish
from walytis_vault.stopping import Stop

LOG_NAME: Final = "node.log"
DRAIN_S: Final = 0.3


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent wants."""

    kind: Literal["found", "join", "serve"]
    home: str
    name: str = "vault"
    passphrase: str | None = None
    network: str | None = None
    removal: str = "any"
    fetch: FetchWish = FetchWish()
    code: str = ""
    """The invitation, to join."""
    listen: str | None = None
    views: str | None = None
    """Where the views are to be kept; may hold a password."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the child says: perhaps progress, then once a result or an error."""

    vault_id: str = ""
    did: str = ""
    endpoint: str = ""
    progress: str = ""
    """A step that takes a while has begun; another answer will follow."""
    error_code: str = ""
    error_message: str = ""


def main() -> NoReturn:
    """Do the job, then end the process at once: the embedded libraries cannot be stopped quickly."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our stdin
    code = 1
    try:
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        code = {"found": _found, "join": _join, "serve": _serve}[job.kind](job, answers)
    except VaultError as e:
        _say(answers, Answer(error_code=e.code, error_message=str(e)))
    except Exception as e:  # the parent must hear of a defect too, without a traceback of a library
        _say(answers, Answer(error_code=VaultError.code, error_message=f"the node failed: {type(e).__name__}: {e}"))
        sys.excepthook(*sys.exc_info())
    logs.drain(DRAIN_S)
    os._exit(code)


def _found(job: Job, answers: IO[bytes]) -> int:
    from walytis_vault.founding import found

    made = found(
        Path(job.home),
        name=job.name,
        passphrase=job.passphrase,
        network=job.network or "loopback",
        removal=job.removal,
        views=job.views,
    )
    _say(answers, Answer(vault_id=made.vault_id, did=made.did))
    return 0


def _join(job: Job, answers: IO[bytes]) -> int:
    from walytis_vault.joining import join

    made = join(
        Path(job.home),
        job.code,
        name=job.name,
        passphrase=job.passphrase,
        network=job.network or "loopback",
        progress=lambda step: _say(answers, Answer(progress=step)),
    )
    _say(answers, Answer(vault_id=made.vault_id, did=made.did))
    return 0


def _serve(job: Job, answers: IO[bytes]) -> int:
    from walytis_vault.composition import run_node

    logs.set_up(file=Path(job.home) / LOG_NAME)
    stop = Stop()
    stop.on_signals((signal.SIGTERM,))

    def watch_lifeline() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        stop.set()

    threading.Thread(target=watch_lifeline, name="lifeline", daemon=True).start()
    run_node(
        Path(job.home),
        passphrase=job.passphrase,
        network=job.network,
        fetch=job.fetch,
        views=job.views,
        listen=job.listen,
        on_ready=lambda endpoint: _say(answers, Answer(endpoint=endpoint)),
        stop=stop,
    )
    return 0


def _say(answers: IO[bytes], answer: Answer) -> None:
    try:
        answers.write(msgspec.json.encode(answer) + b"\n")
    except OSError:
        return  # the parent is gone; its closed lifeline ends us


if __name__ == "__main__":
    main()
