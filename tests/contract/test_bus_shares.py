"""What one client key may hold of the node: a share of bytes, connections and threads; the rest is for the others."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from support.bus_world import World
from support.raw_client import Raw, eventually, ident, rss
from walytis_vault.bus.calls import Call, OpenCall, PublishCall, QueryCall, StatusCall, SubscribeCall
from walytis_vault.bus.peer import Peer
from walytis_vault.bus.protocol import BusLimits, Kind, Nothing
from walytis_vault.bus.security import ClientEntry, add_client
from walytis_vault.domain.errors import TimedOutError

MakeWorld = Callable[[BusLimits], World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeWorld]:
    made: list[World] = []

    def world(limits: BusLimits) -> World:
        made.append(World(tmp_path, limits=limits))
        return made[-1]

    yield world
    for one in made:
        one.close()


def hogs(world: World, connections: int, name: str = "hog") -> list[Raw]:
    """Connections of one key of their own."""
    add_client(world.home / "bus", name, ["read", "publish"])
    return [Raw(world, key_name=name) for _ in range(connections)]


def test_uploads_of_one_key_leave_room_for_others(make: MakeWorld) -> None:
    """A key that holds all the credit it gets, over many connections, has its share; another key publishes."""
    world = make(BusLimits())
    held = hogs(world, 8)
    for raw in held:
        for _ in range(8):
            raw.send(Kind.REQUEST, ident(), PublishCall(inline=False))
    granted = sum(raw.receive()[2]["limit"] for raw in held for _ in range(8))
    assert granted == world.server.details()["bytes_up"] == BusLimits().client_bytes
    assert world.client().publish(bytes(300_000)).position == 1
    for raw in held:
        raw.close()


def test_a_key_has_a_little_when_others_took_all(make: MakeWorld) -> None:
    """When all credit is taken, a key that has none of it still publishes and requests."""
    limits = BusLimits(total_bytes=8 << 20, client_bytes=8 << 20)
    world = make(limits)
    (raw,) = hogs(world, 1)
    content_id = world.service.pretend(1 << 40)
    for _ in range(2):
        raw.send(Kind.REQUEST, ident(), PublishCall(inline=False))
        assert raw.receive()[0] is Kind.OPENED
    raw.send(Kind.REQUEST, ident(), OpenCall(content_id=content_id, limit=1 << 50, timeout_ms=1000))
    assert eventually(lambda: world.server.details()["bytes_down"] == limits.total_bytes)
    assert world.server.details()["bytes_up"] == limits.total_bytes
    client = world.client()
    data = bytes(3 << 20)
    assert client.request(client.publish(data).content_id) == data
    raw.close()


def test_grants_are_taken_back(make: MakeWorld) -> None:
    """An upload that keeps its grant alive and sends nothing loses it while another one waits for it."""
    limits = BusLimits(idle=1.0, client_bytes=4 << 20, client_least=0)
    world = make(limits)
    (raw,) = hogs(world, 1)
    silent, waiting = ident(), ident()
    raw.send(Kind.REQUEST, silent, PublishCall(inline=False))
    assert raw.receive()[2]["limit"] == limits.client_bytes
    raw.send(Kind.REQUEST, waiting, PublishCall(inline=False))
    assert raw.receive()[2]["limit"] == 0
    seen: list[tuple[Kind, bytes]] = []

    def both() -> bool:
        for stream in (silent, waiting):
            raw.send(Kind.PING, stream, Nothing())
            kind, message_id, _ = raw.receive()
            seen.append((kind, message_id))
        return {(Kind.ERROR, silent), (Kind.GRANT, waiting)} <= set(seen)

    assert eventually(both)
    assert (Kind.ERROR, waiting) not in seen
    raw.close()


def test_connections_of_one_key_are_bounded(make: MakeWorld) -> None:
    """A connection beyond those that a key may have is cut; others are served, and closing one makes room."""
    world = make(BusLimits(client_connections=3))
    client = world.client()
    held = hogs(world, 3)
    for raw in held:
        raw.send(Kind.REQUEST, ident(), StatusCall())
        assert raw.receive()[0] is Kind.REPLY
    extra = Raw(world, key_name="hog")
    extra.send(Kind.REQUEST, ident(), StatusCall())
    assert eventually(lambda: world.server.details()["totals"]["cut"] == 1)
    assert client.status().position == 0
    held[0].close()
    late = Raw(world, key_name="hog")
    late.socket.rcvtimeo = 100

    def served() -> bool:
        late.send(Kind.REQUEST, ident(), StatusCall())
        with contextlib.suppress(zmq.Again):
            return late.receive()[0] is Kind.REPLY
        return False

    assert eventually(served, 10)
    for raw in (extra, late, *held[1:]):
        raw.close()


def test_a_connection_for_each_call_is_borne(make: MakeWorld) -> None:
    """A program that opens one after the other is served, however many; each is forgotten when it ends."""
    world = make(BusLimits(client_connections=3))
    for _ in range(50):
        raw = Raw(world)
        raw.send(Kind.REQUEST, ident(), StatusCall())
        assert raw.receive()[0] is Kind.REPLY
        raw.close()
        assert eventually(lambda: world.server.details()["connections"] == 0)
    assert world.server.details()["totals"]["cut"] == 0


def test_what_a_client_said_before_it_ended_still_counts(make: MakeWorld) -> None:
    """A publish whose client ends right away takes effect, and the connection is forgotten."""
    world = make(BusLimits())
    for number in range(1, 21):
        raw = Raw(world)
        raw.socket.linger = 1000
        raw.send(Kind.REQUEST, ident(), PublishCall(inline=True), b"%d" % number)
        raw.socket.close()
        assert eventually(lambda n=number: world.service.position == n)
        raw.close()
    assert eventually(lambda: world.server.details()["connections"] == 0)


def test_closed_connections_are_forgotten(make: MakeWorld) -> None:
    """Connections that are no more are not counted for ever; one that only listens stays."""
    world = make(BusLimits())
    client = world.client()
    for _ in range(20):
        raw = Raw(world)
        raw.send(Kind.REQUEST, ident(), StatusCall())
        assert raw.receive()[0] is Kind.REPLY
        raw.close()
    changes = client.subscribe("events")
    assert eventually(lambda: world.server.details()["connections"] == 1)
    world.service.advance(1)
    assert next(changes).position == 1
    assert client.status().position == 1


def test_unread_replies_are_weighed(make: MakeWorld) -> None:
    """Whoever asks for large replies and takes none is told so and cut before they fill the memory."""
    world = make(BusLimits())
    client = world.client()
    for n in range(40):
        client.publish(b"x", name="n" * 4000, labels=tuple(f"{n:04}" + "l" * 250 for n in range(30)))
    assert len(client.query("catalogue", limit=None)) == 40
    (raw,) = hogs(world, 1)
    raw.socket.rcvhwm = 1
    raw.socket.sndtimeo = 100
    before = rss()
    call = QueryCall(view="catalogue", limit=500)
    for _ in range(20_000):
        with contextlib.suppress(zmq.Again):
            raw.send(Kind.REQUEST, ident(), call)
        if world.server.details()["totals"]["cut"] or world.server.details()["totals"]["errors"] > 5000:
            break
    assert rss() - before < 200 << 20
    assert client.status().position == 40
    raw.close()


def test_a_reader_that_is_slow_gets_everything(make: MakeWorld) -> None:
    """Replies and data that wait for a connection reach it, in order, when it takes them."""
    world = make(BusLimits())
    content_id = world.service.pretend(64 << 20)
    raw = Raw(world, rcvhwm=1)
    stream = ident()
    raw.send(Kind.REQUEST, stream, OpenCall(content_id=content_id, limit=8 << 20, timeout_ms=1000))
    for _ in range(300):
        raw.send(Kind.PING, bytes(16), Nothing())
    assert eventually(lambda: world.service.bytes_read >= 8 << 20)
    got, pongs = 0, 0
    while got < 8 << 20 or pongs < 300:
        parts = raw.socket.recv_multipart()
        if len(parts) == 3:
            got += len(parts[2])
        elif parts[0][4] == Kind.PONG:
            pongs += 1
    assert (got, pongs) == (8 << 20, 300)
    raw.close()


def test_contents_that_do_not_come_hold_up_nobody(make: MakeWorld) -> None:
    """A key that waits for contents that nobody brings has threads of its own; others request and fetch."""
    world = make(BusLimits(quiet=0.2))
    never, later, local = (world.service.pretend(2 << 20) for _ in range(3))
    world.service.away |= {never, later}
    held = hogs(world, 8)
    for raw in held:
        for _ in range(8):
            raw.send(Kind.REQUEST, ident(), OpenCall(content_id=never, timeout_ms=86_400_000))
    client = world.client()
    assert eventually(lambda: world.server.details()["downloads"] == 64)
    assert len(client.request(local) or b"") == 2 << 20
    with pytest.raises(TimedOutError):
        client.request(later, timeout=0.1)
    threading.Timer(0.3, world.service.away.discard, [later]).start()
    assert len(client.request(later) or b"") == 2 << 20
    assert client.publish(bytes(300_000)).position == 4
    for raw in held:
        raw.close()
    assert eventually(lambda: world.server.details()["downloads"] == 0 and not world.server._downloads._dying)


def test_contents_that_stop_coming_hold_up_nobody(make: MakeWorld) -> None:
    """A content of which only the beginning comes holds none of the threads that serve what is here."""
    world = make(BusLimits(quiet=0.2))
    stuck, local = world.service.pretend(4 << 20), world.service.pretend(2 << 20)
    world.service.coming.add(stuck)
    held = hogs(world, 4)
    for raw in held:
        for _ in range(16):
            raw.send(Kind.REQUEST, ident(), OpenCall(content_id=stuck, limit=4 << 20, timeout_ms=86_400_000))
    assert eventually(lambda: world.server.details()["bytes_down"] >= 8 << 20)
    client = world.client()
    assert len(client.request(local) or b"") == 2 << 20
    for raw in held:
        raw.close()
    assert eventually(lambda: world.server.details()["downloads"] == 0 and not world.server._downloads._dying)
    assert eventually(lambda: not world.service.readers)


CALLS: dict[str, Callable[[str], Call]] = {
    "stream": lambda content_id: OpenCall(content_id=content_id, timeout_ms=1000),
    "effect": lambda _: PublishCall(inline=False),
    "loop": lambda _: SubscribeCall(view="events", after=0, limit=10),
}


@pytest.mark.parametrize("lane", CALLS)
def test_open_and_cancel_is_counted(make: MakeWorld, monkeypatch: pytest.MonkeyPatch, lane: str) -> None:
    """Whoever opens and cancels in turns gets no more of the node than who keeps open."""
    world = make(BusLimits(client_streams=16, client_subscriptions=16, refusals=3000))
    content_id = world.service.pretend(1 << 20)
    for name in ("open_content", "begin_publish", "changes"):
        before = getattr(world.service, name)

        def slow(*arguments: Any, before: Callable[..., Any] = before, **named: Any) -> Any:
            threading.Event().wait(0.01)
            return before(*arguments, **named)

        monkeypatch.setattr(world.service, name, slow)
    (raw,) = hogs(world, 1)
    raw.socket.sndtimeo = 10_000
    deepest = 0
    for _ in range(3000):
        stream = ident()
        raw.send(Kind.REQUEST, stream, CALLS[lane](content_id))
        raw.send(Kind.CANCEL, stream, Nothing())
        deepest = max(deepest, world.server.details()["queued"][lane])
    assert eventually(lambda: world.server.details()["totals"]["requests"] == 3000)
    assert world.server.details()["totals"]["errors"] > 0
    assert deepest <= 32  # for each one that is to be opened, one that is to be closed
    assert world.client().status().position == 1
    assert eventually(lambda: not world.service.readers and not world.service.sessions)
    raw.close()


def test_a_cut_ends_only_its_own_connection() -> None:
    """A connection's descriptor is shut down while it is that connection's, and let be when it is another's by now."""
    near, far = socket.socketpair()
    peer = Peer(b"\0rid1", ClientEntry(name="a", public_key="k" * 40, verbs=()), near.fileno(), 0.0)
    others = socket.socketpair()
    kept = os.dup(near.fileno())
    os.dup2(others[0].fileno(), near.fileno())
    peer.shut_down()
    others[1].sendall(b"x")
    assert others[0].recv(1) == b"x"
    os.dup2(kept, near.fileno())
    peer.shut_down()
    assert far.recv(1) == b""
    os.close(kept)
    for s in (near, far, *others):
        s.close()
