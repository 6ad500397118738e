"""What a node keeps of requests confirms no guess of a content, name or reason, and still tells them apart."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from walytis_vault import Client, ConflictError, LockedError, Node
from walytis_vault.bus.calls import ForgetCall, PublishCall
from walytis_vault.bus.messages import PublishOptions
from walytis_vault.bus.protocol import encode

PIN = b"PIN 4711"
NAME = "my pin"
REASON = "because of 4711"
CODE_BYTES = 1 + 32 + 16 + 32
"""What is kept with a code: version, digest of the rest, content id, code."""


def hashes(body: bytes, data: bytes = b"") -> Iterator[bytes]:
    """Every plain hash of a request and its parts that anybody would think of."""
    framed = len(body).to_bytes(8, "big") + body
    for raw in filter(None, (body, data, body + data, framed, framed + data)):
        digest = hashlib.sha256(raw).digest()
        yield digest
        yield hashlib.sha256(digest).digest()


def dictionary(content_id: str) -> set[bytes]:
    """What somebody with the disk would look for who guesses content, name and reason right."""
    found: set[bytes] = set()
    for size in (len(PIN), None):
        call = PublishCall(options=PublishOptions(name=NAME), inline=True, size=size)
        found.update(hashes(encode(call), PIN))
    found.update(hashes(encode(ForgetCall(contents=(content_id,), reason=REASON))), hashes(REASON.encode()))
    return found


def kept(home: Path) -> list[bytes]:
    """What is kept of each request, the first one first."""
    with closing(sqlite3.connect(f"file:{home}/log.sqlite?mode=ro", uri=True)) as database:
        return [bytes(row[0]) for row in database.execute("SELECT digest FROM replies ORDER BY made_ms")]


def confirmed(home: Path, content_id: str) -> bool:
    """Whether anything of the dictionary stands in any file of the home."""
    everything = b"\0".join(path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file())
    return any(guess in everything for guess in dictionary(content_id))


def test_a_dictionary_finds_nothing_before_and_after_forgetting(tmp_path: Path) -> None:
    """Whoever has the disk of a sealed vault and guesses right is not told so, and never again once it is forgotten."""
    home, (publish, forget) = tmp_path / "home", (secrets.token_bytes(16), secrets.token_bytes(16))
    with Node.create(home, passphrase="p"), Client(home) as client:
        content_id = client.publish(PIN, name=NAME, request_id=publish).content_id
        twin = client.publish(PIN, name=NAME).content_id
        first, second = kept(home)
        assert len(first) == len(second) == CODE_BYTES
        assert first[-32:] != second[-32:], "a code depends on the content's key"
        assert first[:33] == second[:33], "the rest is the same for every publish"
        assert not confirmed(home, content_id)
        with pytest.raises(ConflictError):
            client.publish(b"PIN 4712", name=NAME, request_id=publish)
        assert client.forget(content_id, reason=REASON, request_id=forget).state == "carried"
        assert not confirmed(home, content_id)
        assert client.forget(content_id, reason=REASON, request_id=forget).state == "carried"
        with pytest.raises(ConflictError):
            client.forget(twin, reason=REASON, request_id=forget)
        assert client.publish(PIN, name=NAME, request_id=publish).content_id == content_id


def test_requests_are_told_apart_after_a_restart_and_while_locked(tmp_path: Path) -> None:
    """The same id with another body is refused after a restart too; a locked node cannot tell, and says so."""
    home, request_id = tmp_path / "home", secrets.token_bytes(16)
    with Node.create(home, passphrase="p"), Client(home) as client:
        first = client.publish(PIN, name=NAME, request_id=request_id)
    with Node.open(home, passphrase="p"), Client(home) as client:
        assert client.publish(PIN, name=NAME, request_id=request_id) == first
        for other in (b"PIN 4712", PIN + b" "):
            with pytest.raises(ConflictError):
                client.publish(other, name=NAME, request_id=request_id)
        with pytest.raises(ConflictError):
            client.publish(PIN, name="another", request_id=request_id)
        with pytest.raises(ConflictError):
            client.retract(first.content_id, request_id=request_id)
        client.lock()
        with pytest.raises(LockedError):
            client.publish(PIN, name=NAME, request_id=request_id)
        client.unlock("p")
        assert client.publish(PIN, name=NAME, request_id=request_id) == first
