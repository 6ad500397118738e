"""A node with streams open, under a storm of damaged messages that name them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus_storm import storm
from support.bus_world import World
from support.raw_client import Raw, eventually, ident
from walytis_vault.bus.calls import OpenCall, PublishCall, StatusCall, SubscribeCall
from walytis_vault.bus.protocol import BusLimits, Kind, Nothing
from walytis_vault.bus.security import revoke_client


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, limits=BusLimits(malformed=1 << 30, refusals=1 << 30))  # nobody is cut
    yield made
    made.close()


def test_a_storm_over_open_streams(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged messages about streams that are open end them or are refused; nothing else happens, nothing is kept."""
    content_id, chance = world.service.pretend(1 << 40), random.Random(7)
    raw = Raw(world)
    calls = [
        OpenCall(content_id=content_id, limit=1 << 20, timeout_ms=1000, bulk=True),
        PublishCall(inline=False),
        SubscribeCall(view="events", after=0, limit=256),
    ]
    for _ in range(40):
        streams = [ident() for _ in calls]
        for stream, call in zip(streams, calls, strict=True):
            raw.send(Kind.REQUEST, stream, call)
        for damaged in storm(chance, 100):
            if damaged and len(damaged[0]) == 21 and chance.random() < 0.9:
                damaged[0] = damaged[0][:5] + chance.choice(streams)
            if damaged:
                raw.socket.send_multipart(damaged)
        raw.send(Kind.REQUEST, last := ident(), StatusCall())
        while raw.receive()[1] != last:
            pass
        for stream in streams:
            raw.send(Kind.CANCEL, stream, Nothing())
    raw.close()
    assert world.client().publish(bytes(300_000)).position > 1
    revoke_client(world.home / "bus", "local")
    assert eventually(lambda: not world.service.readers and not world.service.sessions)
    details = world.server.details()
    assert (details["bytes_down"], details["bytes_up"]) == (0, 0)
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []
