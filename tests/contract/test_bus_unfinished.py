"""Messages that never end, and connections that never speak: memory is bounded, and honest clients notice nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus_world import World, link_of
from support.endless_sender import endless
from support.raw_client import Raw, eventually, rss
from walytis_vault.bus import pace, unfinished
from walytis_vault.bus.protocol import BusLimits
from walytis_vault.bus.security import add_client, load_key

MIB = 1 << 20
LARGE = 5_000_001


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, limits=BusLimits(memory=64 * MIB, mute=1.0))
    yield made
    made.close()


def test_a_message_of_endless_parts_is_cut_off(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Memory stays bounded while 2 GiB are on their way, is given back, and others are served all the time."""
    add_client(world.home / "bus", "endless", ["read"])
    client = world.client()
    content_id = client.publish(b"x").content_id
    before = most = rss()
    key = load_key(world.home / "bus" / "endless.key")
    words = (world.endpoint, world.keys.public, key.public_key, key.secret_key)
    with endless(2048, "dial", *words):

        def cut() -> bool:
            nonlocal most
            most = max(most, rss())
            assert client.request(content_id) == b"x"
            return "ended" in caplog.text

        assert eventually(cut, 30)
        assert eventually(lambda: rss() < before + 48 * MIB, 10)
        assert client.request(content_id) == b"x"
    assert most < before + 600 * MIB
    assert not any(r.levelname == "ERROR" for r in caplog.records)


def test_who_is_only_quiet_while_memory_grows_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers and idle clients are ended then, and see neither gap nor repeat; what comes in bulk does so again."""
    writer, reader = world.client(), world.client()
    content_id = world.service.pretend(LARGE)
    seen: list[int] = []
    link = link_of(reader)
    deliver = link.incoming_bulk

    def incoming(parts: list[memoryview]) -> None:
        seen.append(len(parts[-1]))
        deliver(parts)

    link.incoming_bulk = incoming  # type: ignore[method-assign]
    assert len(reader.request(content_id) or b"") == LARGE
    first = sum(seen)
    assert first > LARGE
    changes = reader.subscribe("events")
    positions = []
    for round_ in range(2):
        writer.publish(b"%d" % round_)
        positions.append(next(changes).position)
        time.sleep(2 * unfinished.QUIET_S)  # the behaviour of somebody who is quiet, and no wait for anything
        connections = world.server.details()["connections"]
        assert connections
        with monkeypatch.context() as grown:
            grown.setattr(unfinished, "resident", lambda: 1 << 50)
            assert eventually(lambda: world.server.details()["connections"] == 0)
    writer.publish(b"last")
    positions.append(next(changes).position)
    assert positions == list(range(positions[0], positions[0] + 3))
    assert len(reader.request(content_id) or b"") == LARGE
    assert sum(seen) == 2 * first, "the bulk socket was connected again"


def test_who_says_nothing_for_long_is_ended_and_comes_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle client connects again when it has something to say; one with a subscription pings, and stays."""
    monkeypatch.setattr(unfinished, "_LOOK_S", 0.1)
    monkeypatch.setattr(pace, "KEEPALIVE", 0.2)
    idle, follower = world.client(), world.client()
    idle.publish(b"x")
    changes = follower.subscribe("events")
    next(changes)
    stranger = Raw(world)  # never says anything
    stranger.watch()
    assert eventually(lambda: world.server.details()["connections"] == 1)
    assert stranger.socket.poll(0) == 0
    assert stranger._monitor.poll(5000), "it was ended too"
    stranger.close()
    assert idle.publish(b"y").position == 2
    assert next(changes).position == 2
    assert world.server.details()["totals"]["cut"] == 0
