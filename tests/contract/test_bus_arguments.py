"""What programs give to the verbs and the node or the client refuses, over real sockets, on both clients."""

from __future__ import annotations

import datetime as dt
import io
import os
import secrets
import threading
from pathlib import Path

import pytest

from support.bus_world import World
from walytis_vault.client import Client
from walytis_vault.domain.errors import (
    MisuseError,
    NoNodeError,
    StorageError,
    UnknownIdError,
    VaultError,
)


@pytest.mark.parametrize("call", ["request", "retract", "forget", "consent", "refuse", "withdraw", "restore"])
def test_unknown_and_malformed_ids(client: Client, call: str) -> None:
    """An unknown id and a text that is no id are told apart from other errors."""
    with pytest.raises(UnknownIdError):
        getattr(client, call)(secrets.token_hex(16))
    for bad in ("", "xyz", "00" * 15, None, "g" * 32):
        with pytest.raises(MisuseError):
            getattr(client, call)(bad)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "n" * 10_000},
        {"media_type": "m" * 300},
        {"labels": ("x",) * 65},
        {"labels": "text"},
        {"labels": ("l" * 300,)},
        {"note": "n" * 20_000},
        {"name": "\ud800"},
        {"revises": "nonsense"},
        {"expires": dt.datetime(2027, 1, 1)},  # noqa: DTZ001 - that is the point
        {"expires": float("nan")},
        {"expires": "soon"},
        {"request_id": b"short"},
        {"request_id": "zz" * 16},
        {"request_id": bytes(16)},
    ],
)
def test_bad_arguments_of_publish(client: Client, world: World, arguments: dict[str, object]) -> None:
    """Arguments that cannot work are refused with a sentence, and nothing is published."""
    with pytest.raises(MisuseError):
        client.publish(b"x", **arguments)  # type: ignore[arg-type]
    assert world.service.position == 0


@pytest.mark.parametrize("expires", [60, 60.5, dt.timedelta(minutes=1), dt.datetime(2099, 1, 1, tzinfo=dt.UTC)])
def test_expiry_is_taken_in_every_form(client: Client, world: World, expires: float) -> None:
    """Seconds, a span and a moment become a time on the record."""
    content_id = client.publish(b"x", expires=expires).content_id
    assert world.service.contents[content_id]["expires_ms"] > 0


def test_bad_sources(client: Client, world: World, tmp_path: Path) -> None:
    """A folder, a missing file, a text and a text file are refused; nothing is published."""
    (tmp_path / "t").write_text("x")
    with (tmp_path / "t").open() as text:
        for bad in (tmp_path, tmp_path / "none", "text", 7, None, text, io.StringIO("x")):
            with pytest.raises(MisuseError):
                client.publish(bad)  # type: ignore[arg-type]
    assert world.service.position == 0


class _Shrinking(io.RawIOBase):
    """A file of 3 MB that turns out to have less, or fails."""

    def __init__(self, *, fail: bool) -> None:
        self._left = 1_000_000
        self._fail = fail
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = 3_000_000 if whence == os.SEEK_END else offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if self._left <= 0:
            if self._fail:
                raise OSError(5, "Input/output error")
            return b""
        self._left -= 500_000
        return b"x" * 500_000


@pytest.mark.parametrize("fail", [True, False])
def test_a_source_that_breaks_leaves_nothing(client: Client, world: World, fail: bool) -> None:
    """A file that shrinks or fails while it is read is an error of storage, and its session is aborted."""
    with pytest.raises(StorageError):
        client.publish(_Shrinking(fail=fail))  # type: ignore[arg-type]
    client.status()
    assert wait_until(lambda: not world.service.sessions)
    assert world.service.position == 0
    assert world.service.aborted == 1


def test_bad_targets_leave_nothing(client: Client, tmp_path: Path) -> None:
    """A folder, an unwritable place and a text as target are refused, and no partial file remains."""
    content_id = client.publish(b"x" * 1_000_000).content_id
    (tmp_path / "d").mkdir()
    for bad in (tmp_path / "d", "text", io.StringIO()):
        with pytest.raises(MisuseError):
            client.request(content_id, to=bad)  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        client.request(content_id, to=tmp_path / "none" / "x")
    with pytest.raises(VaultError):
        client.request(secrets.token_hex(16), to=tmp_path / "d" / "x")
    with pytest.raises(StorageError):
        client.request(content_id, to=Path("/dev/full"))
    assert list((tmp_path / "d").iterdir()) == []


def test_without_a_node(tmp_path: Path) -> None:
    """No home, no node, a dead node's socket: NoNodeError, at once."""
    for home in (tmp_path / "none", tmp_path):
        with Client(home) as client, pytest.raises(NoNodeError):
            client.status()
    world = World(tmp_path)
    record = (tmp_path / "bus" / "endpoint.json").read_bytes()
    world.close()
    (tmp_path / "bus" / "endpoint.json").write_bytes(record)
    (tmp_path / "bus" / "endpoint.json").chmod(0o600)
    with Client(tmp_path) as client, pytest.raises(NoNodeError):
        client.publish(b"x" * 1_000_000)


def test_a_closed_client(world: World) -> None:
    """After close, calls are refused, waits and iterations end, and closing again does nothing."""
    client = world.client()
    changes = client.subscribe("events")
    ended = threading.Event()

    def follow() -> None:
        for _ in changes:
            pass
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    client.status()
    client.close()
    client.close()
    thread.join(3)
    assert ended.is_set()
    with pytest.raises(MisuseError):
        client.status()


def wait_until(condition: object, timeout: float = 5.0) -> bool:
    """Poll a condition that another thread makes true; bounded."""
    assert callable(condition)
    done = threading.Event()
    for _ in range(int(timeout / 0.01)):
        if condition():
            return True
        done.wait(0.01)
    return False
