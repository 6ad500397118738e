"""Brings the readable blocks of a walytis_offchain 0.5.4 store into a vault, each once, whatever is repeated.

The importer is the publisher; what the old blocks claim about author and time goes into the sealed note and labels,
never onto the chain. Each block's request id follows from its chain and id alone, so the node itself sees to it that
a block that was imported, or imported and forgotten, is not published again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Literal

import msgspec

from walytis_vault.client import Client
from walytis_vault.domain.errors import ConflictError, TransportError, VaultError, error_from_code
from walytis_vault.domain.limits import LIMITS
from walytis_vault.offchain_process import Answer, Failed, Found, Job

LABEL: Final = "walytis-offchain"
REQUEST: Final = b"walytis-vault/import-offchain/v1\x00"
MAX_ANSWER: Final = 1 << 32
Outcome = Literal["imported", "there", "unreadable", "would import"]
_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class OldBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One block of an old store; see `adapters.identity.offchain_store`."""

    block: str
    chain: str
    time: str | None
    author: str | None
    topics: tuple[str, ...]
    content: bytes | None
    problem: str | None = None


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What the note of an imported content says, as JSON. Nobody vouches for any of it."""

    imported_from: str = "walytis_offchain"
    chain: str
    block: str
    author: str | None
    time: str | None
    topics: tuple[str, ...]


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one block."""

    block: str
    outcome: Outcome
    content_id: str | None = None
    author: str | None = None
    time: str | None = None
    size: int | None = None
    problem: str | None = None


def import_offchain(
    client: Client,
    source: Path,
    *,
    key: Path,
    group_keys: Path | None = None,
    blocks: Path | None = None,
    dry_run: bool = False,
) -> Iterator[Imported]:
    """Import a store, oldest block first; yields what becomes of each block as it happens.

    Args:
        client: of the vault's node. Always import with the same client key: repeats are known by it.
        source: the store's folder, or one above it.
        key: file with the key that opens the group's key store, JSON as `Key.serialise_private` gives it.
        group_keys: the group's key store; default: the only `group.json` below `source`.
        blocks: Walytis's folder of the chain, for the authors; default: the one below `source`, if there is one.
        dry_run: publish nothing.
    Raises:
        MisuseError: a part of the store is missing, or the key does not open it. VaultError: as `Client.publish`.
    """
    job = Job(
        source=os.path.abspath(source),
        key=os.path.abspath(key),
        group_keys=None if group_keys is None else os.path.abspath(group_keys),
        blocks=None if blocks is None else os.path.abspath(blocks),
    )
    start = client.status().position
    for block in read_old(job):
        yield _import(client, block, start, dry_run=dry_run)


def _import(client: Client, block: OldBlock, start: int, *, dry_run: bool) -> Imported:
    said = Imported(block=block.block, outcome="there", author=block.author, time=block.time)
    if block.content is None or not block.block:
        return msgspec.structs.replace(said, outcome="unreadable", problem=block.problem)
    said = msgspec.structs.replace(said, size=len(block.content))
    mark = f"{LABEL} {block.block}"
    if rows := client.query("catalogue", label=mark, limit=1):
        return msgspec.structs.replace(said, content_id=rows[0].content_id)
    if dry_run:
        return msgspec.structs.replace(said, outcome="would import")
    claims = Claims(
        chain=block.chain, block=block.block, author=block.author, time=block.time, topics=block.topics[:32]
    )
    try:
        done = client.publish(
            block.content, labels=_labels(mark, block), note=_note(claims), request_id=request_id_of(block)
        )
    except ConflictError:
        return said  # the same block was imported before, by a version that described it otherwise
    except VaultError as e:
        if e.code == "expired-request":
            return said
        raise
    return msgspec.structs.replace(
        said, outcome="imported" if done.position > start else "there", content_id=done.content_id
    )


def request_id_of(block: OldBlock) -> bytes:
    """16 bytes that name the import of a block for ever."""
    text = block.chain.encode() + b"\x00" + block.block.encode()
    return hashlib.sha256(REQUEST + text).digest()[:16]


def _labels(mark: str, block: OldBlock) -> tuple[str, ...]:
    """What it can be found by; the views show labels, not notes."""
    claimed = [f"author {block.author}" if block.author else "", f"time {block.time}" if block.time else ""]
    wanted = dict.fromkeys((LABEL, mark, *claimed, *block.topics))
    fitting = [t for t in wanted if t and t.isprintable() and len(t.encode()) <= LIMITS.label]
    return tuple(fitting[: LIMITS.labels])


def _note(claims: Claims) -> str:
    text = msgspec.json.encode(claims).decode()
    if len(text.encode()) > LIMITS.descriptor // 4:
        text = msgspec.json.encode(msgspec.structs.replace(claims, topics=())).decode()
    return text


def read_old(job: Job) -> Iterator[OldBlock]:
    """The blocks of an old store, read by a process of its own that ends with this iteration."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen(
        [sys.executable, "-m", "walytis_vault.offchain_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(msgspec.json.encode(job) + b"\n")
            child.stdin.close()
        while (answer := _next(child.stdout)) is not None:
            yield answer
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()


def _next(stream: IO[bytes]) -> OldBlock | None:
    """The next block; None after the last. Raises what the child reported, TransportError when it died."""
    head = stream.read(8)
    size = int.from_bytes(head, "big")
    body = stream.read(size) if len(head) == 8 and size <= MAX_ANSWER else b""
    try:
        answer = _decoder.decode(body)
        if isinstance(answer, Found):
            return msgspec.convert(answer.block, OldBlock, builtin_types=(bytes,))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise TransportError("the process that reads the old store ended: repeat the import, it goes on") from e
    if isinstance(answer, Failed):
        raise error_from_code(answer.code, answer.message)
    return None
