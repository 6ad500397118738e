"""Subscriptions before a real node: every view and the raw events, filtered, from any position, then following."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import zmq

from walytis_vault import Client, MisuseError, Node
from walytis_vault.bus.calls import SubscribeCall
from walytis_vault.bus.endpoint import read_record
from walytis_vault.bus.messages import Change
from walytis_vault.bus.protocol import CHANGES, Kind, pack, split
from walytis_vault.bus.security import load_key


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
        holding = take(client, 2, "holders", content_id=third.content_id)
        assert [c.row and c.row["state"] for c in holding] == ["erased", "erased"]
        (change,) = take(client, 1, "holders", content_id=first.content_id)
        assert change.row is not None
        assert (change.row["state"], change.row["member"], change.position) == ("published", me, first.position)
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


CROWD = 500


@pytest.mark.long
def test_500_programs_follow_a_real_node(tmp_path: Path) -> None:
    """500 connections follow a real node at once; each gets every event once and in order, and others are served."""
    with Node.create(tmp_path / "home") as node, Client(node.home, timeout=60) as client, zmq.Context() as context:
        record, key = read_record(node.home / "bus"), load_key(node.home / "bus" / "local.key")
        context.set(zmq.MAX_SOCKETS, 2 * CROWD)
        sockets = [context.socket(zmq.DEALER) for _ in range(CROWD)]
        for number, s in enumerate(sockets, 1):
            s.linger, s.rcvtimeo = 0, 60_000
            s.curve_serverkey = record.server_key.encode()
            s.curve_publickey, s.curve_secretkey = key.public_key.encode(), key.secret_key.encode()
            s.connect(record.endpoint)
            call = SubscribeCall(view="events", after=0, limit=256)
            s.send_multipart(pack(Kind.REQUEST, number.to_bytes(16, "big"), call))
        for _ in range(20):
            last = client.publish(b"x").position
        for s in sockets:
            positions: list[int] = []
            while len(positions) < last:
                message = split(s.recv_multipart(), body_cap=1 << 22, data_cap=1 << 22)
                assert message.kind is Kind.CHANGES
                positions += [change.position for change in CHANGES.decode(message.data)]
            assert positions == list(range(1, last + 1))
        assert client.status().details["bus"]["subscriptions"] == CROWD
        for s in sockets:
            s.close()
