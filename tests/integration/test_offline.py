"""Nodes that miss thousands of events, lose everything, or are killed among seven: all end with equal views."""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.canaries import find_canaries
from support.peer_nodes import Member, agree, eventually, found_and_join, join, meet, stop_all
from walytis_vault import Client, ForgottenError, VaultError

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]
Trio = tuple[Member, Member, Member]
PATIENCE_S = 300.0


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    """Three members."""
    members = found_and_join(tmp_path, "a", "b", "c")
    try:
        a, b, c = members
        yield a, b, c
    finally:
        stop_all(members)


def publish_many(member: Member, count: int) -> list[str]:
    """Publish small contents from several threads, so that batches hold many events."""
    with ThreadPoolExecutor(8) as pool:
        return [
            done.content_id
            for done in pool.map(lambda n: member.client.publish(b"many %d" % n, name=f"many {n}"), range(count))
        ]


def test_a_node_that_missed_thousands_of_events_and_two_sides_of_a_cut(trio: Trio) -> None:
    """One is off for 3,000 events of both others, which then hear nothing of each other; all views come out equal."""
    a, b, c = trio
    c.stop()
    ids = publish_many(a, 1500)
    b.stop()
    ids += publish_many(a, 300)
    a.stop()
    b.start()
    ids += publish_many(b, 1200)
    c.start()
    a.start()
    meet(*trio)
    for member in trio:
        eventually(lambda m=member: m.client.status().position >= len(ids), "all events have come", PATIENCE_S)  # type: ignore[misc]
    eventually(lambda: len({str(m.hashes()) for m in trio}) == 1, "all views are equal", PATIENCE_S)
    sample = random.Random(1).sample(ids, 20)
    for member in trio:
        assert {r.content_id for r in member.client.query("catalogue", limit=None)} >= set(ids)
        assert all((member.client.request(i) or b"").startswith(b"many ") for i in sample)
        report = member.client.audit()
        assert report["ok"], report["findings"]


def test_a_node_that_lost_everything_joins_again_and_has_all_again(trio: Trio) -> None:
    """Its home is deleted; it comes in anew with a code, the lost device is removed, and log and contents are back."""
    a, b, c = trio
    data = {m.client.publish(secrets.token_bytes(5000), name="kept").content_id: m for m in trio}
    large = secrets.token_bytes(3 << 20)
    big = c.client.publish(large).content_id
    eventually(lambda: all(m.state(i) == "available" for m in trio for i in data), "all have the small ones")
    assert b.client.request(big) == large
    ballot_id = a.client.forget(gone := next(iter(data))).ballot_id
    for member in (b, c):
        eventually(lambda m=member: m.ballot(ballot_id), "the ballot is seen")  # type: ignore[misc]
        member.client.consent(ballot_id)
    eventually(lambda: all(len(m.ballot(ballot_id).receipts) == 3 for m in trio), "all have erased")
    lost = c.did
    c.stop()
    shutil.rmtree(c.home)
    again = join(c.home, b)
    try:
        meet(a, again)
        eventually(lambda: all(again.row(i) for i in (*data, big)), "the log is there", PATIENCE_S)
        for content_id in data:
            if content_id == gone:
                with pytest.raises(ForgottenError):
                    again.client.request(content_id)
            else:
                assert again.client.request(content_id) == a.client.request(content_id)
        assert again.client.request(big) == large
        waits = a.client.forget(big).ballot_id
        for member in (b, again):
            eventually(lambda m=member: m.ballot(waits), "the ballot is seen")  # type: ignore[misc]
            assert member.client.consent(waits).state == "open"
        b.client.remove(lost)
        eventually(lambda: all(m.ballot(waits).state == "carried" for m in (a, b, again)), "nobody waits for the lost")
        agree(a, b, again)
        assert all(m.client.audit(read_data=True)["ok"] for m in (a, b, again))
    finally:
        again.stop()


def test_seven_members_with_kills(tmp_path: Path) -> None:
    """Seven publish, fetch and forget while two nodes are killed at random moments; views and memberships end equal."""
    chance = random.Random(20261122)
    members = found_and_join(tmp_path, "a", "b", "c", "d", "e", "f", "g")
    try:
        secret = secrets.token_bytes(32)
        contents = {m.client.publish(secret + secrets.token_bytes(2000), name="of each").content_id: m for m in members}
        large = members[3].client.publish(secret + bytes(3 << 20)).content_id
        victims = chance.sample(members[1:], 2)
        for victim in victims:
            others = [m for m in members if m is not victim]
            with ThreadPoolExecutor(4) as pool:
                busy = [pool.submit(_publish_some, m, chance.randrange(3, 9)) for m in [victim, *others[:3]]]
                enough = 7 + chance.randrange(4)
                eventually(lambda v=victim, n=enough: len(v.client.query("catalogue", limit=None)) > n, "some came")  # type: ignore[misc]
                victim.kill()
                done = [future.result() for future in busy]
            victim.start()
            contents |= {i: m for m, ids in zip([victim, *others[:3]], done, strict=True) for i in ids}
        meet(*members)
        for member in members:
            eventually(lambda m=member: all(m.row(i) for i in contents), "everything is known", PATIENCE_S)  # type: ignore[misc]
            for content_id in (*contents, large):
                assert member.client.request(content_id, timeout=60)
        ballot_id = members[0].client.forget(*contents, large).ballot_id
        for member in members[1:]:
            eventually(lambda m=member: m.ballot(ballot_id), "the ballot is seen")  # type: ignore[misc]
            member.client.consent(ballot_id)
        for member in members:
            eventually(lambda m=member: len(m.ballot(ballot_id).receipts) == 7, "seven receipts", PATIENCE_S)  # type: ignore[misc]
        eventually(lambda: len({str(m.hashes()) for m in members}) == 1, "all views are equal", PATIENCE_S)
        for member in members:
            assert find_canaries(member.home, {"content": secret}) == []
            assert len(member.client.members()) == 7
            report = member.client.audit(read_data=True)
            assert report["ok"], report["findings"]
    finally:
        stop_all(members)


def _publish_some(member: Member, count: int) -> list[str]:
    """Publish until the node dies; what was acknowledged."""
    acknowledged = []
    try:
        with Client(member.home) as client:
            for number in range(count):
                acknowledged.append(client.publish(b"some %d" % number).content_id)
    except VaultError:
        pass
    return acknowledged
