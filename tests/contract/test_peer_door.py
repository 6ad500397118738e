"""The peer door over real sockets: whoever connects too often, asks too much or reads nothing costs only itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import zmq
from zmq.utils import z85

from support.endless_sender import endless
from support.raw_client import rss
from walytis_vault.bus.security import BusKeys, make_keys
from walytis_vault.bus.unfinished import Unfinished
from walytis_vault.domain.errors import BusyError
from walytis_vault.peers import connections as bounds
from walytis_vault.peers import protocol as p
from walytis_vault.peers.door import PeerDoor
from walytis_vault.peers.link import PeerLink

PATIENCE_S = 30.0
LARGE = [os.urandom(1 << 20), os.urandom(1 << 20)]
DOOR = make_keys()


def eventually(look: Callable[[], object], what: str) -> None:
    """Wait until it is so; bounded."""
    pause, until = threading.Event(), time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < until, f"it did not come to pass: {what}"
        pause.wait(0.02)


@pytest.fixture
def door() -> Iterator[PeerDoor]:
    """A door that answers every pull with 2 MiB, and everything else with a word."""

    def answer(_key: bytes, request: p.Request, _payload: Sequence[bytes]) -> tuple[p.Reply, Sequence[bytes]]:
        return (p.Batches(more=True), LARGE) if isinstance(request, p.Pull) else (p.Done(number=7), ())

    made = PeerDoor(DOOR.secret.encode(), admits=lambda _key: True, answer=answer)
    made.start()
    yield made
    made.close()


class Raw:
    """Connections of one key that do as the test says, and read nothing by themselves."""

    def __init__(self, door: PeerDoor, count: int) -> None:
        self.context = zmq.Context()
        self.keys = make_keys()
        self.sockets = [self._connect(door) for _ in range(count)]

    def _connect(self, door: PeerDoor) -> zmq.Socket[bytes]:
        made = self.context.socket(zmq.DEALER)
        made.linger, made.rcvhwm, made.rcvbuf = 0, 1, 4096
        made.curve_serverkey = DOOR.public.encode()
        made.curve_publickey, made.curve_secretkey = self.keys.public.encode(), self.keys.secret.encode()
        made.reconnect_ivl = -1
        made.connect(f"tcp://127.0.0.1:{door.port}")
        return made

    def close(self) -> None:
        """End all."""
        self.context.destroy(linger=0)


def asked(door: PeerDoor, keys: BusKeys | None = None) -> object:
    """What a member with its own key is told."""
    link = PeerLink(door.port, server_key=z85.decode(DOOR.public.encode()), keys=keys or make_keys())
    try:
        reply, _ = link.ask(p.ChainSize(), timeout=PATIENCE_S)
    finally:
        link.close()
    return reply


def test_who_reads_nothing_fills_no_memory(door: PeerDoor) -> None:
    """Connections of one key ask for far more than may wait: no more than that waits, and others are served."""
    raw = Raw(door, 6)
    key = z85.decode(raw.keys.public.encode())
    try:
        most = connections = 0
        for _ in range(20):
            for socket in raw.sockets:
                for _ in range(2):
                    if socket.poll(0, zmq.POLLOUT):
                        socket.send_multipart(p.pack(os.urandom(16), p.Pull(have={})), zmq.NOBLOCK)
            assert asked(door) == p.Done(number=7)
            unread = dict(door._connections._unread)
            most = max(most, unread.get(key, 0))
            connections = max(
                connections,
                sum(c.key == key for c in list(door._connections._by_id.values())),
            )
        assert connections == bounds.CONNECTIONS_OF_ONE
        assert 0 < most <= bounds.UNREAD_OF_ONE + bounds.WAITING * connections * 200
    finally:
        raw.close()
    eventually(lambda: not door._connections._unread, "what waited for them is freed")
    eventually(lambda: not door._connections.count, "and so are they")


def test_who_reads_late_gets_everything_or_is_told(door: PeerDoor) -> None:
    """What fits is delivered whole once the peer reads; for the rest it is told `busy`; nothing is left unanswered."""
    raw = Raw(door, 1)
    (socket,) = raw.sockets
    try:
        nonces = {os.urandom(16) for _ in range(24)}
        for nonce in nonces:
            socket.send_multipart(p.pack(nonce, p.Pull(have={})))
        eventually(lambda: door._connections._unread and not door._in_flight, "all is answered, and not read")
        refused = 0
        for _ in range(len(nonces)):
            assert socket.poll(int(PATIENCE_S * 1000))
            frames = socket.recv_multipart()
            nonces.remove(p.nonce_of(frames))
            reply = p.read_reply(frames)
            if isinstance(reply, p.Refused):
                assert isinstance(p.error_of(reply), BusyError)
                refused += 1
            else:
                assert frames[2:] == LARGE
        assert not nonces
        assert 0 < refused < 24
    finally:
        raw.close()


def test_connections_that_say_nothing_keep_nobody_out(door: PeerDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no more than so many; those that never said a word go first."""
    monkeypatch.setattr(bounds, "CONNECTIONS", 8)
    member = PeerLink(door.port, server_key=z85.decode(DOOR.public.encode()), keys=make_keys())
    assert member.ask(p.ChainSize(), timeout=PATIENCE_S)[0] == p.Done(number=7)
    raw = Raw(door, 20)
    try:
        for _ in range(3):
            assert asked(door) == p.Done(number=7)
        eventually(lambda: door._connections.count <= 8, "the rest is cut")
        assert member.ask(p.ChainSize(), timeout=PATIENCE_S)[0] == p.Done(number=7)
    finally:
        raw.close()
        member.close()


def test_a_key_that_connects_anew_is_served(door: PeerDoor) -> None:
    """What is left of a device's earlier connections does not keep it out: the one that was silent longest is cut."""
    keys = make_keys()
    links = [PeerLink(door.port, server_key=z85.decode(DOOR.public.encode()), keys=keys) for _ in range(5)]
    try:
        for link in links:
            assert link.ask(p.ChainSize(), timeout=PATIENCE_S)[0] == p.Done(number=7)
    finally:
        for link in links:
            link.close()


def test_a_request_of_endless_parts_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded while a member sends 2 GiB in one message; others are answered."""
    monkeypatch.setattr("walytis_vault.peers.door.Unfinished", lambda: Unfinished(memory=64 << 20))
    made = PeerDoor(DOOR.secret.encode(), admits=lambda _key: True, answer=lambda *_: (p.Done(number=7), ()))
    made.start()
    keys, before, most = make_keys(), rss(), 0
    try:
        with endless(2048, "dial", f"tcp://127.0.0.1:{made.port}", DOOR.public, keys.public, keys.secret):
            eventually(lambda: rss() > before + (32 << 20), "memory grows")
            until = time.monotonic() + PATIENCE_S
            while (now := rss()) > before + (48 << 20):
                most = max(most, now)
                assert isinstance(asked(made), p.Done)
                assert time.monotonic() < until
    finally:
        made.close()
    assert most < before + (600 << 20)


def test_an_answer_of_endless_parts_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a member's node that answers so."""
    monkeypatch.setattr("walytis_vault.peers.link.Unfinished", lambda: Unfinished(memory=64 << 20))
    before, most = rss(), 0
    with endless(2048, "serve", DOOR.secret) as port:
        link = PeerLink(int(port), server_key=z85.decode(DOOR.public.encode()), keys=make_keys())
        try:
            answer = link.send(p.ChainSize(), timeout=PATIENCE_S)
            eventually(lambda: rss() > before + (32 << 20), "memory grows")
            until = time.monotonic() + PATIENCE_S
            while (now := rss()) > before + (48 << 20):
                most = max(most, now)
                assert time.monotonic() < until
            assert not answer.done()
        finally:
            link.close()
    assert most < before + (600 << 20)
