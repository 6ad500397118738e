"""What a member can do with batches: sign two under one number, tell each node another story, backdate."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator

import msgspec
import pytest

from support.canaries import find_canaries
from support.hostile_member import HostileMember
from support.log_world import Device, proposal, publication
from support.peer_nodes import Member, agree, eventually, found_and_join, meet, stop_all
from walytis_vault import ForgottenError
from walytis_vault.domain import events as ev
from walytis_vault.peers import protocol as p

pytestmark = pytest.mark.long
Trio = tuple[Member, Member, Member]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Two honest members, and one whose home a hostile node can take over."""
    members = found_and_join(tmp_path_factory.mktemp("batches"), "a", "b", "evil/vault")
    try:
        a, b, evil = members
        yield a, b, evil
    finally:
        stop_all(members)


@pytest.fixture
def evil(trio: Trio) -> Iterator[HostileMember]:
    """The third member's keys in hostile hands."""
    meet(*trio)
    agree(*trio)
    trio[2].stop()
    member = HostileMember(trio[2].home, *trio[:2])
    try:
        yield member
    finally:
        member.end()
        trio[2].start()


def something(evil: HostileMember, revises: bytes | None = None) -> ev.ContentPublished:
    """A publication that nobody holds."""
    return publication(evil.vault_id, evil.did, nonce=secrets.token_bytes(16), revises=revises)


def asking(evil: HostileMember, content: bytes, electorate: Iterable[str]) -> ev.ForgettingProposed:
    """A proposal by the hostile member."""
    return proposal(evil.vault_id, evil.did, [content], sorted(electorate), nonce=secrets.token_bytes(16))


def test_a_fork_told_to_two_nodes_is_known_to_both(trio: Trio, evil: HostileMember) -> None:
    """Two batches under one number, one for each node and none on the chain: both nodes get both, and go on."""
    a, b, _ = trio
    one, two = evil.batch(something(evil)), evil.batch(something(evil))
    evil.push(a, one[1])
    evil.push(b, two[1])
    evil.end()
    ours = a.client.publish(b"after one side of the fork").content_id
    theirs = b.client.publish(b"after the other side").content_id
    eventually(lambda: b.row(ours) and a.row(theirs), "neither side keeps the honest from each other", 40)
    agree(a, b)
    audits = [m.client.audit() for m in (a, b)]
    assert audits[0]["forks"] == audits[1]["forks"]
    assert len(audits[0]["forks"]) == 1
    assert all(audit["ok"] for audit in audits), audits


def test_what_was_forgotten_stays_so_whatever_is_published_again(trio: Trio, evil: HostileMember) -> None:
    """A member that kept everything publishes the forgotten content's event again, and revisions of it."""
    a, b, third = trio
    secret = secrets.token_bytes(32)
    evil.end()
    third.start()
    meet(*trio)
    content_id = third.client.publish(secret * 40).content_id
    for member in (a, b):
        eventually(lambda m=member: m.state(content_id) == "available", "the content came")  # type: ignore[misc]
    ballot_id = a.client.forget(content_id).ballot_id
    for member in (b, third):
        eventually(lambda m=member: m.ballot(ballot_id), "the ballot is seen")  # type: ignore[misc]
        member.client.consent(ballot_id)
    for member in (a, b):
        eventually(lambda m=member: len(m.ballot(ballot_id).receipts) == 3, "all have erased")  # type: ignore[misc]
    third.stop()
    again = HostileMember(third.home, a, b)
    try:
        payload = again.run("published", content_id=bytes.fromhex(content_id))
        event = ev.PRODUCT_EVENTS.decode(ev.ContentPublished.TOPIC, bytes(payload))
        assert isinstance(event, ev.ContentPublished)
        revision = something(again, revises=event.content_id)
        other_root = msgspec.structs.replace(event, root=secrets.token_bytes(32))
        for made in (event, other_root, revision):
            again.to_chain(again.batch(made)[1])
        for member in (a, b):
            eventually(lambda m=member: m.state(revision.content_id.hex()) == "forgotten", "it is seen, as forgotten")  # type: ignore[misc]
            assert member.state(content_id) == "forgotten"
            for wanted in (content_id, revision.content_id.hex()):
                with pytest.raises(ForgottenError):
                    member.client.request(wanted, timeout=2)
            assert find_canaries(member.home, {"content": secret}) == []
            report = member.client.audit(read_data=True)
            assert not any(c["stored_here"] for c in report["contents"] if c["forgetting"] == "carried")
    finally:
        again.end()


def test_nobody_is_forced_to_forget(trio: Trio, evil: HostileMember) -> None:
    """Proposals that leave somebody out, name strangers or are retold with other contents erase nothing anywhere."""
    a, b, _ = trio
    content_id = a.client.publish(b"not yours to forget").content_id
    eventually(lambda: b.state(content_id) == "available", "the content came")
    wanted, evil_did = bytes.fromhex(content_id), evil.did
    evil.run("pull", device=a.did)
    assert _knows(evil, wanted)
    for electorate in ((evil_did,), (evil_did, "did:nobody:1"), (evil_did, b.did)):
        asked = asking(evil, wanted, electorate)
        evil.to_chain(evil.batch(asked)[1])
        evil.to_chain(evil.batch(ev.ForgettingConsented(ballot_id=asked.ballot_id))[1])
        evil.to_chain(evil.batch(ev.ContentErased(contents=(wanted,), ballot_id=asked.ballot_id))[1])
    harmless = b.client.publish(b"may go").content_id
    eventually(lambda: a.row(harmless), "the content is known")
    honest = b.client.forget(harmless).ballot_id
    eventually(lambda: a.ballot(honest), "the honest ballot is seen")
    retold = asking(evil, wanted, (a.did, b.did, evil_did))
    retold = msgspec.structs.replace(retold, ballot_id=bytes.fromhex(honest))
    evil.to_chain(evil.batch(retold)[1])
    evil.to_chain(evil.batch(ev.ForgettingConsented(ballot_id=bytes.fromhex(honest)))[1])
    a.client.consent(honest)
    evil.to_chain(evil.batch(ev.ContentRetracted(content_id=wanted))[1])
    marker = something(evil)
    evil.to_chain(evil.batch(marker)[1])
    for member in (a, b):
        eventually(lambda m=member: m.row(marker.content_id.hex()), "all of that has arrived")  # type: ignore[misc]
        assert member.client.request(content_id) == b"not yours to forget"
    agree(a, b)


def test_a_key_is_given_for_a_request_of_ones_own_only(trio: Trio, evil: HostileMember) -> None:
    """An honest request opens; foreign, exchanged and moved signatures get no key, nor does a stranger."""
    a, b, _ = trio
    ids = [bytes.fromhex(a.client.publish(data).content_id) for data in (b"one", b"other")]
    evil.run("pull", device=a.did)
    assert all(_knows(evil, i) for i in ids)
    asked = msgspec.msgpack.decode(evil.run("key_request", content_id=ids[0], holder=a.did), type=p.Fetch)
    kind, reply, parts = evil.ask(a, asked)
    assert (kind, reply["state"], len(parts)) == ("answer", "here", 1)
    assert evil.run("opens", nonce=asked.nonce, sealed=reply["sealed_key"])
    as_b = msgspec.msgpack.decode(evil.run("key_request", content_id=ids[0], holder=a.did, asker=b.did), type=p.Fetch)
    for_b = msgspec.msgpack.decode(evil.run("key_request", content_id=ids[0], holder=b.did), type=p.Fetch)
    fresh = msgspec.msgpack.decode(evil.run("key_request", content_id=ids[0], holder=a.did), type=p.Fetch)
    tries = {
        "as another device": as_b,
        "meant for another holder": for_b,
        "for another content": msgspec.structs.replace(fresh, content_id=ids[1]),
        "another public key": msgspec.structs.replace(fresh, public=asked.public),
        "another nonce": msgspec.structs.replace(fresh, nonce=asked.nonce),
        "a signature of zeros": msgspec.structs.replace(fresh, signature=bytes(len(fresh.signature))),
        "half a signature": msgspec.structs.replace(fresh, signature=fresh.signature[:64]),
        "one half of zeros": msgspec.structs.replace(fresh, signature=fresh.signature[:64] + bytes(3309)),
        "a cut public key": msgspec.structs.replace(fresh, public=fresh.public[:-1]),
    }
    for what, request in tries.items():
        kind, said, parts = evil.ask(a, request)
        assert (kind, parts) == ("untrusted-input", []), (what, said)
    kind, said, parts = evil.ask(a, fresh, stranger=True)
    assert (kind, parts) == ("timeout", []), said
    assert evil.ask(a, fresh)[0] == "answer"


def test_a_removed_member_gets_and_changes_nothing(trio: Trio, evil: HostileMember) -> None:
    """After its removal it is refused at every door; what it backdates is void on all nodes, admissions included."""
    a, b, _ = trio
    content_id = a.client.publish(b"before the removal").content_id
    eventually(lambda: b.state(content_id) == "available", "the content came")
    wanted, evil_did = bytes.fromhex(content_id), evil.did
    evil.run("pull", device=a.did)
    assert _knows(evil, wanted)
    number, previous, heads = evil.run("position")
    a.client.remove(evil_did)
    for member in (a, b):
        eventually(lambda m=member: len([x for x in m.client.members() if x.state == "removed"]) == 1, "it is removed")  # type: ignore[misc]
    asked = msgspec.msgpack.decode(evil.run("key_request", content_id=wanted, holder=a.did), type=p.Fetch)
    hello = p.Hello(addresses=(), known={}, have={})
    parts_of_it = (p.Segment(content_id=wanted, number=0), p.Leaves(content_id=wanted, start=0))
    requests: tuple[p.Request, ...] = (asked, *parts_of_it, p.Pull(have={}), hello)
    for member in (a, b):
        for request in requests:
            kind, said, parts = evil.ask(member, request)
            assert (kind, parts) == ("timeout", []), said
    ghost = Device("ghost")
    keys = ghost.keys(evil.vault_id)
    admits = ev.MemberAdmitted(member=keys.member, keys=keys, invitation=secrets.token_bytes(32))
    late = asking(evil, wanted, (a.did, b.did, evil_did))
    backdated = [something(evil), late, admits, ev.MemberRemoved(member=a.did, accepted=())]
    for event in backdated:
        number += 1
        previous, envelope = evil.batch(event, number=number, previous=bytes(previous), heads=heads)
        evil.to_chain(envelope)
    evil.to_chain(b"the end of it")
    for member in (a, b):
        eventually(lambda m=member: m.client.status().blocks.get("refused", 0) >= 2, "all of that has arrived")  # type: ignore[misc]
    after = a.client.publish(b"the members go on").content_id
    eventually(lambda: b.state(after) == "available", "the members go on")
    audits = [m.client.audit() for m in (a, b)]
    # What it backdated, and the sides of its earlier forks that the removal does not name.
    void = 3 + len(audits[0]["forks"])
    assert audits[0]["void_batches"] == audits[1]["void_batches"] == void
    assert all(audit["ok"] for audit in audits)
    assert {m.did for m in a.client.members() if m.state != "removed"} == {a.did, b.did}
    assert all(m.client.request(content_id) == b"before the removal" for m in (a, b))
    assert all(m.ballot(late.ballot_id.hex()) is None for m in (a, b))
    agree(a, b)


def _knows(evil: HostileMember, content_id: bytes) -> bool:
    """Whether the hostile node has heard of a content."""
    return bool(evil.run("published", content_id=content_id))
