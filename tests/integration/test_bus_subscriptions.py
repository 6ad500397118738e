"""Subscriptions before a real node: every view and the raw events, filtered, from any position, then following."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from walytis_vault import Client, MisuseError, Node
from walytis_vault.bus.messages import Change


def take(client: Client, count: int, view: str, after: int = 0, **filters: Any) -> list[Change]:
    """The next changes of a subscription."""
    subscription = client.subscribe(view, after=after, **filters)
    try:
        return list(islice(subscription, count))
    finally:
        subscription.close()


def test_every_view_and_events_filtered_from_any_position(tmp_path: Path) -> None:
    """Each subscription replays what fits from where it was asked, in order, and then brings what comes."""
    with Node.create(tmp_path / "home") as node, Client(node.home) as client:
        me = client.status().did
        first, second, third = (client.publish(b"x", name=str(n), labels=(f"l{n}",)) for n in range(3))
        client.retract(second.content_id)
        ballot = client.forget(third.content_id, reason="enough")
        last = client.status().position

        events = take(client, last, "events")
        assert [c.position for c in events] == list(range(1, last + 1))
        for after in (1, 3, last - 1):
            assert [c.position for c in take(client, last - after, "events", after)] == list(range(after + 1, last + 1))
        published = take(client, 3, "events", type="content-published/1", author=me)
        assert [c.ids for c in published] == [(p.content_id,) for p in (first, second, third)]
        about = take(client, 2, "events", content_id=second.content_id)
        assert [c.type for c in about] == ["content-published/1", "content-retracted/1"]

        client.wait_for(last)
        states = {p.content_id: s for p, s in ((first, "available"), (second, "retracted"), (third, "forgotten"))}
        for content_id, state in states.items():
            (change,) = take(client, 1, "catalogue", state=state, author=me)
            assert change.row is not None
            assert (change.row["content_id"], change.row["state"]) == (content_id, state)
        (change,) = take(client, 1, "catalogue", label="l0")
        assert change.ids == (first.content_id,)
        (change,) = take(client, 1, "ballots", state="carried")
        assert change.row is not None
        assert change.row["ballot_id"] == ballot.ballot_id
        (change,) = take(client, 1, "members")
        assert change.row is not None
        assert change.row["did"] == me
        assert [c.position for c in take(client, last, "timeline")] == list(range(1, last + 1))
        with pytest.raises(MisuseError):  # blocks change their verdict in place: query it instead
            next(client.subscribe("audit"))

        follow: dict[str, Callable[[], Change]] = {}
        wanted_of: dict[str, dict[str, Any]] = {"events": {"author": me}, "catalogue": {"label": "new"}, "timeline": {}}
        for view, filters in wanted_of.items():
            subscription = client.subscribe(view, after=last, **filters)
            follow[view] = subscription.__next__
        other, wanted = client.publish(b"y", labels=("old",)), client.publish(b"z", labels=("new",))
        for published_now in (other, wanted):
            assert follow["events"]().position == follow["timeline"]().position == published_now.position
        assert follow["catalogue"]().ids == (wanted.content_id,)
        assert client.wait_for(wanted.position) >= wanted.position
        assert client.query("catalogue", label="new")[0].content_id == wanted.content_id
