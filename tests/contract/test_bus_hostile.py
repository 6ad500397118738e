"""Clients of any quality: whatever one of them sends, the others are served and the node's memory stays bounded."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from support.bus_world import World
from support.raw_client import Raw, eventually, ident, rss
from walytis_vault.bus import protocol as p
from walytis_vault.bus.calls import OpenCall, PublishCall, StatusCall, SubscribeCall
from walytis_vault.bus.protocol import BusLimits, Credit, Kind, Nothing, Place, header
from walytis_vault.bus.security import add_client, revoke_client

LIMITS = BusLimits(client_streams=16, client_subscriptions=600)
IMPATIENT = BusLimits(idle=1.0, stalled=1.0, client_streams=16, refusals=1000)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, limits=LIMITS)
    yield made
    made.close()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[World]:
    """A node that cuts the silent after a second."""
    made = World(tmp_path, limits=IMPATIENT)
    yield made
    made.close()


@pytest.fixture
def raw(world: World) -> Iterator[Raw]:
    made = Raw(world)
    yield made
    made.close()


OK_HEADER = header(Kind.REQUEST, b"i" * 16)
GARBAGE: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"x" * 21, b""],
    [OK_HEADER],
    [OK_HEADER, b""],
    [OK_HEADER, b"\xc1"],
    [OK_HEADER, b"\x81\xa4call\xa4none"],
    [OK_HEADER, b"\x82\xa4call\xa6status\xa1x\x01"],
    [OK_HEADER, b"\x91" * 1000],
    [OK_HEADER, b"\x80" * 100_000],
    [OK_HEADER[:20], b"\x80"],
    [OK_HEADER, b"\x81\xa4call\xa6status", b"data"],
    [OK_HEADER, b"\x80", b"", b""],
    [b"WVB\x01\x77" + b"i" * 16, b"\x80"],
    [header(Kind.REPLY, b"i" * 16), b"\x80"],
    [header(Kind.PING, b"i" * 16), b"\x81\xa1x\x01"],
    [header(Kind.CREDIT, b"i" * 16), b"\x80"],
    [header(Kind.REQUEST, bytes(16)), b"\x81\xa4call\xa6status"],
]


def test_garbage_is_answered_or_cut_and_nobody_else_notices(world: World) -> None:
    """Malformed messages of every kind get an error; whoever keeps on is cut; another client is served."""
    client = world.client()
    for parts in GARBAGE:
        raw = Raw(world)
        raw.socket.send_multipart(parts)
        kind, _, body = raw.receive()
        assert kind is Kind.ERROR, parts
        assert body["code"] in ("untrusted-input", "misuse", "protocol-version", p.STREAM_GONE), parts
        raw.close()
    raw = Raw(world)
    for _ in range(200):
        raw.socket.send_multipart([b"junk", b"junk"])
    codes = 0
    raw.socket.rcvtimeo = 500
    while True:
        try:
            raw.socket.recv_multipart()
            codes += 1
        except zmq.Again:
            break
    assert codes < 200
    raw.close()
    assert client.status().position == 0


def test_another_version_is_told_which_to_use(raw: Raw) -> None:
    """A message of another protocol version is answered with the versions that the node speaks."""
    raw.socket.send_multipart([b"WVB\x02" + OK_HEADER[4:], b"\x80"])
    kind, message_id, body = raw.receive()
    assert (kind, message_id, body["code"], body["versions"]) == (Kind.ERROR, b"i" * 16, "protocol-version", [1])


@pytest.mark.parametrize(("size", "answer"), [(1 << 20, None), (250_000, Kind.ERROR)])
def test_large_parts_and_many_parts(world: World, size: int, answer: Kind | None) -> None:
    """60 parts of 1 MB end the connection, 60 of a quarter are refused; memory stays bounded all the while."""
    client = world.client()
    client.status()
    raw = Raw(world)
    raw.send(Kind.REQUEST, ident(), StatusCall())
    assert raw.receive()[0] is Kind.REPLY
    raw.watch()
    parts = [b"x" * size] * 60
    before = peak = rss()

    def sample() -> None:
        nonlocal peak
        peak = max(peak, rss())

    raw.socket.send_multipart(parts)
    assert raw.answer_or_end(each=sample) is answer
    sample()
    assert peak - before < 150 << 20  # of which the client holds its own 60 MB
    raw.close()
    assert client.status().position == 0


def test_a_download_without_credit_sends_nothing(world: World, raw: Raw) -> None:
    """A client that grants nothing gets the length and no byte; with a little credit exactly that."""
    content_id = world.service.pretend(1 << 40)
    stream = ident()
    raw.send(Kind.REQUEST, stream, OpenCall(content_id=content_id, limit=0, timeout_ms=1000))
    assert raw.receive() == (Kind.OPENED, stream, {"length": 1 << 40, "content_id": "", "limit": 0, "bulk_key": b""})
    raw.send(Kind.PING, stream, Nothing())
    assert raw.receive()[0] is Kind.PONG
    raw.send(Kind.CREDIT, stream, Credit(received=0, limit=10))
    assert raw.receive() == (Kind.CHUNK, stream, {"offset": 0})
    raw.send(Kind.PING, stream, Nothing())
    kind, _, body = raw.receive()
    assert (kind, body["sent"]) == (Kind.PONG, 10)


def test_credit_without_taking_is_bounded_and_cut(impatient: World) -> None:
    """Clients that grant all the credit there is and take nothing hold a bounded amount and are cut."""
    world = impatient
    content_id = world.service.pretend(1 << 40)
    client = world.client()
    client.status()
    before = rss()
    add_client(world.home / "bus", "stalled")
    stalled = [Raw(world, rcvhwm=1, key_name="stalled") for _ in range(4)]
    for raw in stalled:
        for _ in range(4):
            call = OpenCall(content_id=content_id, limit=1 << 50, timeout_ms=1000)
            raw.send(Kind.REQUEST, ident(), call)
    assert eventually(lambda: world.service.bytes_read > 32 << 20)
    client.publish(b"x" * 300_000)
    assert world.server.details()["bytes_down"] <= LIMITS.client_bytes
    assert rss() - before < 400 << 20
    assert eventually(lambda: not world.service.readers, 10)
    assert eventually(lambda: world.server.details()["bytes_down"] == 0)
    for raw in stalled:
        raw.close()
    assert client.request(client.publish(b"y").content_id) == b"y"


def test_a_thousand_streams(impatient: World) -> None:
    """A client that opens 1,000 streams gets as many as it may have, and is told about the others."""
    world, raw = impatient, Raw(impatient)
    content_id = world.service.pretend(1 << 30)
    for n in range(1000):
        if n % 2:
            raw.send(Kind.REQUEST, ident(), OpenCall(content_id=content_id, limit=0, timeout_ms=1000))
        else:
            raw.send(Kind.REQUEST, ident(), PublishCall(inline=False))
    seen: dict[str, int] = {}
    for _ in range(1000):
        kind, _, body = raw.receive()
        what = body.get("code", kind.name)
        seen[what] = seen.get(what, 0) + 1
    assert seen == {"OPENED": LIMITS.client_streams, "busy": 1000 - LIMITS.client_streams}
    assert len(world.service.readers) + len(world.service.sessions) == LIMITS.client_streams
    raw.close()
    assert eventually(lambda: not world.service.readers and not world.service.sessions)


def test_too_many_requests_at_once(world: World, raw: Raw) -> None:
    """A client with more requests in flight than it may have is told that it is too many."""
    world.service.latency = 3.0  # no answer in the meantime, however slow the machine is
    for _ in range(400):
        raw.send(Kind.REQUEST, ident(), PublishCall(inline=True), b"x")
    codes = [raw.receive()[2].get("code") for _ in range(400 - LIMITS.peer_requests)]
    assert set(codes) == {"busy"}


def test_an_upload_beyond_its_credit(world: World, raw: Raw) -> None:
    """Data beyond the credit, out of order or empty ends the upload, and nothing is published."""
    for offset, data in ((0, b""), (5, b"x"), (1 << 40, b"x")):
        stream = ident()
        raw.send(Kind.REQUEST, stream, PublishCall(inline=False))
        assert raw.receive()[0] is Kind.OPENED
        raw.send(Kind.DATA, stream, Place(offset=offset), data)
        kind, message_id, _ = raw.receive()
        assert (kind, message_id) == (Kind.ERROR, stream)
    stream = ident()
    raw.send(Kind.REQUEST, stream, PublishCall(inline=False))
    limit = raw.receive()[2]["limit"]
    gate = threading.Event()

    def block() -> None:
        gate.wait(5)

    for _ in range(8):
        world.server._pools["stream"].submit(object(), block)
    for n in range(limit // LIMITS.chunk + 1):
        raw.send(Kind.DATA, stream, Place(offset=n * LIMITS.chunk), b"x" * LIMITS.chunk)
    kind, message_id, body = raw.receive()
    assert (kind, message_id, body["code"]) == (Kind.ERROR, stream, "busy")
    gate.set()
    assert eventually(lambda: not world.service.sessions)
    assert world.service.position == 0


def test_tiny_data_does_not_pile_up(world: World, raw: Raw) -> None:
    """An upload in single bytes comes out right."""
    stream = ident()
    raw.send(Kind.REQUEST, stream, PublishCall(inline=False))
    raw.receive()
    for n in range(3000):
        raw.send(Kind.DATA, stream, Place(offset=n), bytes([n % 256]))
    raw.send(Kind.END, stream, p.Length(length=3000))
    while (answer := raw.receive())[0] is not Kind.REPLY:
        assert answer[0] is Kind.GRANT
    assert world.service.blobs[answer[2]["content_id"]] == bytes(n % 256 for n in range(3000))


def test_a_silent_upload_is_cut(impatient: World) -> None:
    """An upload whose client says nothing for the idle time is aborted; whoever is there after all is told."""
    raw = Raw(impatient)
    raw.send(Kind.REQUEST, ident(), PublishCall(inline=False))
    assert raw.receive()[0] is Kind.OPENED
    kind, _, body = raw.receive()
    assert (kind, body["code"]) == (Kind.ERROR, p.STREAM_GONE)
    assert eventually(lambda: not impatient.service.sessions)
    raw.close()


def test_credit_that_lies(world: World, raw: Raw) -> None:
    """Credit for bytes or changes that were never sent ends the stream."""
    content_id = world.service.pretend(1 << 30)
    calls = [
        OpenCall(content_id=content_id, limit=0, timeout_ms=1000),
        SubscribeCall(view="events", after=0, limit=0),
    ]
    for call in calls:
        stream = ident()
        raw.send(Kind.REQUEST, stream, call)
        if isinstance(call, OpenCall):
            raw.receive()
        raw.send(Kind.CREDIT, stream, Credit(received=5, limit=10))
        kind, _, body = raw.receive()
        assert (kind, body["code"]) == (Kind.ERROR, "misuse")


def test_slow_loris_and_plain_connections(world: World) -> None:
    """200 connections that never finish a handshake do not keep a client out."""
    path = world.endpoint.removeprefix("ipc://")
    held = []
    for n in range(200):
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        if n % 2:
            s.sendall(os.urandom(n))
        held.append(s)
    assert world.client().status().position == 0
    for s in held:
        s.close()


def test_flooding_leaves_others_served(tmp_path: Path) -> None:
    """While one client sends as fast as it can, another's requests are answered, and it is told to wait."""
    world = World(tmp_path, limits=BusLimits(refusals=1 << 30))
    stop, codes = threading.Event(), set[str]()

    def flood() -> None:
        raw = Raw(world)
        raw.socket.sndtimeo = 100
        while not stop.is_set():
            with contextlib.suppress(zmq.Again):
                for _ in range(1000):
                    raw.send(Kind.REQUEST, ident(), PublishCall(inline=True), b"x")
            while raw.socket.poll(0):
                codes.add(raw.receive()[2].get("code", ""))
        raw.close()

    world.service.latency = 0.2
    client = world.client()
    client.status()
    before = rss()
    thread = threading.Thread(target=flood)
    thread.start()
    served = 0
    while served < 100 or "busy" not in codes:
        client.status()
        served += 1
    stop.set()
    thread.join()
    assert world.server.details()["totals"]["requests"] > 10 * served
    assert rss() - before < 200 << 20
    world.close()


def test_a_revoked_key_that_stays_silent_is_cut_too(world: World) -> None:
    """A connection that only listens is cut when its key is revoked, without a word from it."""
    add_client(world.home / "bus", "listener", ["read"])
    raw = Raw(world, key_name="listener")
    raw.send(Kind.REQUEST, ident(), SubscribeCall(view="events", after=0, limit=256))
    world.service.advance(1)
    assert raw.receive()[0] is Kind.CHANGES
    assert world.server.details()["connections"] == 1
    revoke_client(world.home / "bus", "listener")
    assert eventually(lambda: world.server.details()["connections"] == 0)
    world.service.advance(1)
    raw.socket.rcvtimeo = 300
    with contextlib.suppress(zmq.Again):
        while True:
            assert raw.receive()[0] is Kind.PONG, "at most the probe that precedes the cut"
    raw.close()


def test_asking_without_taking_is_cut(tmp_path: Path) -> None:
    """Whoever asks on and on and takes no answer is cut before the answers pile up, however lively it is."""
    world = World(tmp_path, limits=BusLimits(peer_waiting=200))
    raw = Raw(world, rcvhwm=1)
    raw.socket.sndtimeo = 50
    body, asked = bytes(200), 0
    while not world.server.details()["totals"]["cut"]:
        with contextlib.suppress(zmq.Again):
            raw.send(Kind.DATA, ident(), Place(offset=0), body)  # each is answered: there is no such stream
        asked += 1
        assert asked < 200_000
    assert world.client().status().position == 0
    assert eventually(lambda: world.server.details()["connections"] == 1)
    raw.close()
    world.close()


def test_a_subscriber_that_grants_nothing_costs_only_itself(world: World, raw: Raw) -> None:
    """A subscriber without credit gets nothing, however much happens, and others follow."""
    raw.send(Kind.REQUEST, ident(), SubscribeCall(view="events", after=0, limit=3))
    changes = world.client().subscribe("events")
    world.service.advance(2000)
    assert [next(changes).position for _ in range(2000)] == list(range(1, 2001))
    kind, stream, body = raw.receive()
    got = body["count"]
    while got < 3:
        kind, stream, body = raw.receive()
        got += body["count"]
    assert (kind, got) == (Kind.CHANGES, 3)
    raw.send(Kind.PING, stream, Nothing())
    kind, _, body = raw.receive()
    assert (kind, body["sent"]) == (Kind.PONG, 3)
