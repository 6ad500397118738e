"""Bulk streams over real sockets: what a session gets, and what nobody else gets."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest

from walytis_vault.adapters.exchange import sealed_stream
from walytis_vault.adapters.exchange.sealed_stream import SealedStream, hello, new_session, wait_at_most
from walytis_vault.domain.errors import (
    BusyError,
    NotYetAvailableError,
    TransportError,
    UntrustedInputError,
)
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.limits import SEGMENT_BYTES
from walytis_vault.peers import bulk_door
from walytis_vault.peers.bulk_door import BulkDoor
from walytis_vault.peers.bulk_link import BulkStream

DEVICE, OTHER = b"d" * 32, b"o" * 32
CONTENT = ContentId(b"c" * 16)
SEGMENTS = [secrets.token_bytes(SEGMENT_BYTES), secrets.token_bytes(70_000)]


class Shelf:
    """What the door reads from, and who may read."""

    def __init__(self) -> None:
        self.devices = {DEVICE}
        self.asked: list[tuple[bytes, bytes, int]] = []

    def read(self, device: bytes, content_id: ContentId, number: int) -> bytes:
        """One segment, for those who may have it."""
        self.asked.append((device, content_id, number))
        if device not in self.devices or number >= len(SEGMENTS):
            raise NotYetAvailableError("not here")
        return SEGMENTS[number]


@pytest.fixture
def shelf() -> Shelf:
    """What is there."""
    return Shelf()


@pytest.fixture
def door(shelf: Shelf) -> Iterator[BulkDoor]:
    """A door that serves it."""
    made = BulkDoor(shelf.read)
    made.start()
    yield made
    made.close()


def dial(door: BulkDoor, session: bytes, key: bytes) -> BulkStream:
    """Connect with a session."""
    return BulkStream(door.port, session=session, key=key)


def ended(connection: socket.socket) -> bool:
    """Whether the door closed a connection without having said a word."""
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_segments_come_in_the_order_asked(door: BulkDoor, shelf: Shelf) -> None:
    """Several asked ahead come one after the other, byte for byte, for the device of the session."""
    with closing(dial(door, *door.offer(DEVICE, CONTENT))) as stream:
        for number in (1, 0, 1):
            stream.ask(number)
        for number in (1, 0, 1):
            assert bytes(stream.take(len(SEGMENTS[number]))) == SEGMENTS[number]
    assert set(shelf.asked) == {(DEVICE, CONTENT, 0), (DEVICE, CONTENT, 1)}


def test_a_device_that_may_no_longer_gets_no_more(door: BulkDoor, shelf: Shelf) -> None:
    """The desk is asked for each segment: a removal in the middle ends the stream."""
    with closing(dial(door, *door.offer(DEVICE, CONTENT))) as stream:
        stream.ask(0)
        assert bytes(stream.take(SEGMENT_BYTES)) == SEGMENTS[0]
        shelf.devices.clear()
        stream.ask(1)
        with pytest.raises(NotYetAvailableError):
            stream.take(len(SEGMENTS[1]))
        with pytest.raises(TransportError):
            stream.take(len(SEGMENTS[1]))


@pytest.mark.parametrize("said", ["unknown session", "wrong key", "used session", "nothing but noise"])
def test_nobody_without_a_session_gets_a_byte(door: BulkDoor, shelf: Shelf, said: str) -> None:
    """Whoever knocks with another hello than that of an open offer is cut off without a word."""
    session, key = door.offer(DEVICE, CONTENT)
    knock = {
        "unknown session": hello(*new_session()),
        "wrong key": hello(session, new_session()[1]),
        "used session": hello(session, key),
        "nothing but noise": secrets.token_bytes(32),
    }[said]
    if said == "used session":
        first = dial(door, session, key)
        first.ask(0)
        first.take(SEGMENT_BYTES)
        shelf.asked.clear()
    with closing(socket.create_connection(("127.0.0.1", door.port))) as stranger:
        stranger.sendall(knock)
        assert ended(stranger)
    assert shelf.asked == []
    if said == "used session":
        first.ask(1)
        assert bytes(first.take(len(SEGMENTS[1]))) == SEGMENTS[1]
        first.close()


def test_nothing_readable_passes_the_local_port(door: BulkDoor) -> None:
    """Somebody who sees all bytes of the connection sees neither the segment nor the key."""
    session, key = door.offer(DEVICE, CONTENT)
    with closing(socket.create_connection(("127.0.0.1", door.port))) as connection:
        wait_at_most(connection, 10)
        connection.sendall(hello(session, key))
        seen: list[bytes] = []
        stream = SealedStream(_Tapped(connection, seen), session=session, key=key, longest=SEGMENT_BYTES, dials=True)
        stream.send(bulk_door.ASK, (0).to_bytes(8))
        assert bytes(stream.receive(SEGMENT_BYTES)[1]) == SEGMENTS[0]
        whole = b"".join(seen)
    assert len(whole) > SEGMENT_BYTES
    assert key not in whole
    assert all(SEGMENTS[0][at : at + 16] not in whole for at in range(0, SEGMENT_BYTES, 4096))


class _Tapped(socket.socket):
    """A socket that shows what it receives."""

    def __init__(self, inner: socket.socket, seen: list[bytes]) -> None:
        super().__init__(fileno=inner.dup().detach())
        self._seen = seen

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0) -> int:  # type: ignore[override]
        got = super().recv_into(buffer, nbytes, flags)
        self._seen.append(bytes(buffer[:got]))
        return got


class Wire:
    """Between a dialler and a door: the test carries frames as it likes."""

    def __init__(self, session: bytes, key: bytes, door_key: bytes | None = None) -> None:
        near, self.near = socket.socketpair()
        far, self.far = socket.socketpair()
        for end in (near, self.near, far, self.far):
            wait_at_most(end, 10)
        self.dialler = SealedStream(near, session=session, key=key, longest=100, dials=True)
        self.door = SealedStream(far, session=session, key=door_key or key, longest=100, dials=False)

    def frame(self, size: int) -> bytes:
        """One frame with `size` bytes of data, as the dialler sent it."""
        return self.near.recv(1 + size + 16, socket.MSG_WAITALL)

    def close(self) -> None:
        """Close all ends."""
        self.dialler.close()
        self.door.close()
        self.near.close()
        self.far.close()


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a bit of the data": lambda f: [f[0][:3] + bytes([f[0][3] ^ 1]) + f[0][4:]],
    "the kind": lambda f: [bytes([f[0][0] ^ 3]) + f[0][1:]],
    "the order": lambda f: [f[1], f[0]],
    "left out": lambda f: [f[1]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_frames_are_refused(change: str) -> None:
    """A frame that was changed, moved or left out on the way is refused."""
    with closing(Wire(*new_session())) as wire:
        for data in (b"first data", b"other data"):
            wire.dialler.send(1, data)
        wire.far.sendall(b"".join(CHANGES[change]([wire.frame(10), wire.frame(10)])))
        with pytest.raises(UntrustedInputError):
            wire.door.receive(10)


def test_repeated_and_reflected_frames_are_refused() -> None:
    """A frame counts once, and for the other side only."""
    with closing(Wire(*new_session())) as wire:
        wire.dialler.send(1, b"some data!")
        frame = wire.frame(10)
        wire.far.sendall(frame * 2)
        assert bytes(wire.door.receive(10)[1]) == b"some data!"
        with pytest.raises(UntrustedInputError):
            wire.door.receive(10)
        wire.near.sendall(frame)
        with pytest.raises(UntrustedInputError):
            wire.dialler.receive(10)


def test_a_frame_under_another_key_is_refused() -> None:
    """The session's id alone seals nothing."""
    session, key = new_session()
    with closing(Wire(session, key, door_key=new_session()[1])) as wire:
        wire.dialler.send(1, b"some data!")
        wire.far.sendall(wire.frame(10))
        with pytest.raises(UntrustedInputError):
            wire.door.receive(10)


def test_sessions_are_bounded(door: BulkDoor) -> None:
    """One device gets so many sessions at once and no more; another is not held up by that."""
    for _ in range(bulk_door.SESSIONS_OF_ONE):
        door.offer(DEVICE, CONTENT)
    with pytest.raises(BusyError):
        door.offer(DEVICE, CONTENT)
    door.offer(OTHER, CONTENT)


def test_strangers_are_bounded_and_members_come_in_again(door: BulkDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that say nothing are closed when there are too many, and make room after a while."""
    monkeypatch.setattr(bulk_door, "HELLO_S", 0.2)
    silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(bulk_door.STRANGERS + 4)]
    try:
        assert all(ended(connection) for connection in silent)
        with closing(dial(door, *door.offer(DEVICE, CONTENT))) as stream:
            stream.ask(0)
            assert bytes(stream.take(SEGMENT_BYTES)) == SEGMENTS[0]
    finally:
        for connection in silent:
            connection.close()


def test_closing_ends_open_streams(door: BulkDoor) -> None:
    """A node that stops leaves nobody waiting."""
    with closing(dial(door, *door.offer(DEVICE, CONTENT))) as stream:
        stream.ask(0)
        stream.take(SEGMENT_BYTES)
        door.close()
        with pytest.raises(TransportError):
            stream.take(SEGMENT_BYTES)


@pytest.mark.parametrize("direction", ["to us", "from us"])
def test_a_frame_that_drips_ends_the_stream(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that gives or takes a few bytes now and then, within every single wait, is not waited for for ever."""
    monkeypatch.setattr(sealed_stream, "FRAME_S", 0.3)
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        wait_at_most(end, 0.3)
    stream = SealedStream(near, session=b"s" * 16, key=b"k" * 32, longest=SEGMENT_BYTES, dials=True)
    move = partial(stream.receive, SEGMENT_BYTES) if direction == "to us" else partial(stream.send, 1, bytes(1 << 20))
    over = threading.Event()

    def drip() -> None:
        with contextlib.suppress(ConnectionError):  # the stream has ended, as it should
            for _ in range(200):
                if direction == "to us":
                    far.send(b"\1")
                else:
                    far.recv(1)
                if over.wait(0.05):
                    return
        far.close()

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        with pytest.raises(TransportError, match="too long"):
            move()
    finally:
        over.set()
        stream.close()
        dripping.join(10)
        far.close()
