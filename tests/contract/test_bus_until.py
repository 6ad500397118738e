"""Subscriptions that end at a position, and `walytis-vault log`, which is one: whatever stands at the last position."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from support.bus_world import World
from walytis_vault.bus.messages import Change
from walytis_vault.cli import main
from walytis_vault.client import Client

T = TypeVar("T")


@pytest.fixture(params=["sync", "async"])
def client(world: World, request: pytest.FixtureRequest) -> Client:
    return world.client() if request.param == "sync" else world.sync()


def void(world: World, *positions: int) -> None:
    """Let positions be void: nothing is given for them, and they are passed."""
    changes = world.service.changes

    def without(view: str, *, after: int, limit: int, filters: dict[str, Any]) -> tuple[list[Change], int]:
        found, upto = changes(view, after=after, limit=limit, filters=filters)
        return [c for c in found if c.position not in positions], upto

    world.service.changes = without  # type: ignore[method-assign]


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives, which would hang for ever if it were wrong."""
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "it still waits"
    return done[0]


def positions(client: Client, **given: Any) -> list[int]:
    return within(20, lambda: [c.position for c in client.subscribe("events", **given)])


def test_it_ends_where_it_was_asked_to(client: Client, world: World) -> None:
    """At that position, not at what comes after it, also when nothing stands there or nothing fits the filter."""
    world.service.advance(700)
    assert positions(client, until=700) == list(range(1, 701))
    assert positions(client, after=690, until=693) == [691, 692, 693]
    assert positions(client, after=700, until=700) == []
    assert positions(client, after=700, until=3) == []
    assert positions(client, until=700, type="nothing/1") == []
    void(world, 5, 699, 700)
    assert positions(client, after=2, until=5) == [3, 4]
    assert positions(client, after=697, until=700) == [698]


def test_it_waits_for_a_position_that_is_to_come(client: Client, world: World) -> None:
    """The end may lie ahead: what comes until then is given, and a restart of the node between does no harm."""
    world.service.advance(3)
    changes = client.subscribe("events", until=6)
    assert [next(changes).position for _ in range(3)] == [1, 2, 3]
    world.restart()
    world.service.advance(4)
    assert within(20, lambda: [c.position for c in changes]) == [4, 5, 6]


def test_log_ends_when_the_last_position_is_void(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A late batch of a removed member is passed over: `log` prints the others and ends."""
    world.service.advance(5)
    void(world, 5)
    assert within(20, lambda: main(["--home", str(world.home), "log", "--json"])) == 0
    assert [json.loads(line)["position"] for line in capsys.readouterr().out.splitlines()] == [1, 2, 3, 4]


def test_log_picks_by_content_author_type_and_time(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The node picks what it can, the command the rest."""
    client = world.client()
    first, second = (client.publish(data, name=data.decode()).content_id for data in (b"one", b"two"))
    ballot = client.forget(second).ballot_id
    every = list(client.subscribe("events", until=client.status().position))

    def log(*options: str) -> list[int]:
        assert main(["--home", str(world.home), "log", "--json", *options]) == 0
        return [json.loads(line)["position"] for line in capsys.readouterr().out.splitlines()]

    assert log("--content", first.upper()) == [c.position for c in every if first in c.ids]
    assert log("--content", ballot) == [c.position for c in every if ballot in c.ids]
    assert log("--author", every[0].author) == [c.position for c in every]
    assert log("--author", "did:nobody") == []
    assert log("--type", "content-published") == log("--type", "content-published/1") == [1, 2]
    assert log("--last", "1") == [every[-1].position]
    assert log("--as-of", "2") == [1, 2]
    assert every[0].time.startswith("1970-01-01T00:00:00")
    assert log("--since", "1970-01-01T00:00:00") == log("--until", "1h") == [c.position for c in every]
    assert log("--since", "1h") == log("--until", "1970-01-01T00:00:00Z") == []
    assert log("--after", "999") == []
