"""Clients that do not heed what the node tells them are cut and wait; those that do are never told anything."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from support.bus_world import World
from support.raw_client import Raw, eventually, ident
from walytis_vault.bus.calls import OpenCall, PublishCall, StatusCall
from walytis_vault.bus.protocol import BusLimits, Kind, Nothing, Place
from walytis_vault.bus.security import add_client


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, limits=BusLimits(refusals=32))
    yield made
    made.close()


@pytest.mark.parametrize("what", ["too many requests", "data of no stream", "garbage", "what it cancels"])
def test_whoever_does_not_heed_is_cut_and_kept_away_for_a_while(world: World, what: str) -> None:
    """It is told at first, then cut, and its key waits; others are served, and its own other programs come in later."""
    add_client(world.home / "bus", "hasty", ["read"])
    client, other = world.client(), world.client(key="hasty")
    content_id = client.publish(b"x").content_id
    other.status()
    raw = Raw(world, key_name="hasty")
    raw.socket.sndtimeo = 50
    while not world.server.details()["totals"]["cut"]:  # bounded by the time that a test may take
        with contextlib.suppress(zmq.Again):
            for _ in range(100):
                if what == "garbage":
                    raw.socket.send_multipart([b"junk", b"junk"])
                elif what == "data of no stream":
                    raw.send(Kind.DATA, ident(), Place(offset=0), b"x")
                elif what == "what it cancels":
                    stream = ident()
                    raw.send(Kind.REQUEST, stream, OpenCall(content_id=content_id, timeout_ms=1000))
                    raw.send(Kind.CANCEL, stream, Nothing())
                else:
                    raw.send(Kind.REQUEST, ident(), StatusCall())
    raw.close()
    client.status()
    other.status()  # the connection that it has already is left alone
    began = time.monotonic()
    assert world.client(key="hasty").status().position == 1
    assert time.monotonic() - began > 0.2, "a new one is let in, but not at once"


def test_many_connections_gain_nothing(world: World) -> None:
    """A program that connects again and again before it is cut is kept away too: what it sends counts for its key."""
    add_client(world.home / "bus", "hasty", ["read"])
    client = world.client()
    client.status()
    tried = 0
    while not world.server.details()["totals"]["cut"]:
        raw = Raw(world, key_name="hasty")
        for _ in range(14):  # too few for this connection to be cut
            raw.socket.send_multipart([b"junk", b"junk"])
        raw.socket.rcvtimeo = 500
        with contextlib.suppress(zmq.Again):
            for _ in range(14):
                raw.receive()
        raw.close()
        tried += 1
        assert tried < 2000
    client.status()


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_client_that_is_busy_and_heeds_is_told_nothing(tmp_path: Path, kind: str) -> None:
    """However many requests, downloads, uploads and subscriptions one after the other: no error, nobody is cut."""
    world = World(tmp_path, limits=BusLimits(refusals=20))
    client = world.client() if kind == "threads" else world.sync()
    small, large = client.publish(b"small").content_id, client.publish(bytes(3 << 20)).content_id
    for _ in range(60):
        assert client.request(small) == b"small"
        client.status()
    for _ in range(30):
        assert len(client.request(large) or b"") == 3 << 20
        client.publish(bytes(200_000))
        next(iter(client.subscribe("events")))
    totals = world.server.details()["totals"]
    assert totals["cut"] == 0
    assert totals["errors"] <= 10, "a late ping now and then, and not one for each transfer"
    world.close()


def test_nobody_works_for_a_client_that_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client asked for before it ended is not looked up any more; what has an effect is done."""
    looked, pause, status = [0], threading.Event(), world.service.status

    def counted() -> Any:
        looked[0] += 1
        pause.wait(0.05)  # far longer than the node takes to notice that a connection has ended
        return status()

    monkeypatch.setattr(world.service, "status", counted)
    raw = Raw(world)
    for _ in range(200):
        raw.send(Kind.REQUEST, ident(), StatusCall())
    raw.send(Kind.REQUEST, ident(), PublishCall(inline=True), b"x")
    assert eventually(lambda: world.server.details()["totals"]["requests"] == 201)
    raw.close()
    assert eventually(lambda: world.server.details()["running"] == 0)
    assert looked[0] < 150
    assert eventually(lambda: world.client().status().position == 1)
