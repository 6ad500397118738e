"""Three members on three real nodes: they propose, consent, refuse, miss things, come back, and one is put out."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.canaries import find_canaries
from support.command_line import as_json, run
from support.cut_network import CutNetwork
from support.faulty_process import FAULT_VARIABLE
from support.lying_process import LIE_VARIABLE
from support.peer_nodes import Member, agree, eventually, found_and_join, meet, stop_all
from walytis_vault import ForgottenError, VaultError
from walytis_vault.backup.restore import restore_backup

pytestmark = pytest.mark.timeout(240)
Trio = tuple[Member, Member, Member]
MIB = 1 << 20


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """A founder and two members that joined at the same time, all running and connected."""
    members = found_and_join(tmp_path_factory.mktemp("trio"), "a", "b", "c")
    try:
        a, b, c = members
        yield a, b, c
    finally:
        stop_all(members)


def everywhere(members: Trio, content_id: str, state: str = "available") -> None:
    """Wait until a content is in a state on all nodes."""
    for member in members:
        eventually(lambda m=member: m.state(content_id) == state, f"the content is {state} on all nodes")  # type: ignore[misc]


def receipted(members: Trio, ballot_id: str) -> None:
    """Wait until all nodes have erased, and all know it."""
    for member in members:
        eventually(
            lambda m=member: (r := m.ballot(ballot_id)) and r.state == "carried" and len(r.receipts) == 3,  # type: ignore[misc]
            "three receipts on all nodes",
        )


def test_all_consent_all_erase_and_nothing_is_left_on_any_disk(trio: Trio) -> None:
    """A proposal reaches all; it carries with the last consent; all erase and sign; no disk holds a trace."""
    a, b, c = trio
    secret, name, reason = secrets.token_bytes(32), secrets.token_hex(16), secrets.token_hex(16)
    canaries = {"content": secret, "name": name.encode(), "reason": reason.encode()}
    content_id = a.client.publish(secret * 40, name=name, labels=[name]).content_id
    everywhere(trio, content_id)
    heard = c.client.subscribe("ballots", after=c.client.status().position)
    ballot_id = a.client.forget(content_id, reason=reason).ballot_id
    states = (str((change.row or {})["state"]) for change in heard if ballot_id in change.ids)
    assert next(states) == "open"
    shown = eventually(lambda: [r for r in as_json(b.home, "ballots") if r["ballot_id"] == ballot_id], "it is shown")
    assert (shown[0]["state"], shown[0]["consents"]) == ("open", [a.did])
    assert sorted(shown[0]["electorate"]) == sorted(m.did for m in trio)
    for member in trio:
        assert member.client.request(content_id) == secret * 40
        assert {h.canary for h in find_canaries(member.home, canaries)} == set(), "only sealed forms are on a disk"
    run(b.home, "consent", ballot_id)
    eventually(lambda: len(c.ballot(ballot_id).consents) == 2, "the consent is seen")
    assert c.client.request(content_id) == secret * 40, "nothing is erased before all have consented"
    assert c.client.consent(ballot_id).state == "carried"
    receipted(trio, ballot_id)
    assert next(state for state in states if state != "open") == "carried"
    assert len(as_json(a.home, "ballots")[0]["receipts"]) == 3
    agree(*trio)
    for member in trio:
        with pytest.raises(ForgottenError):
            member.client.request(content_id)
        assert member.client.audit(read_data=True)["ok"]
    for member in trio:
        member.stop()
        assert find_canaries(member.home, canaries) == []
    for member in trio:
        member.start()
    meet(*trio)
    agree(*trio)
    for member in trio:
        assert find_canaries(member.home, canaries) == []
        assert member.state(content_id) == "forgotten"


def test_who_was_off_erases_when_it_is_back_and_never_gets_it_again(trio: Trio) -> None:
    """A node that is off while a ballot carries erases at its return; one that lacked the bytes never fetches them."""
    a, b, c = trio
    secret = secrets.token_bytes(32)
    small = a.client.publish(secret * 40, name="small").content_id
    large = a.client.publish(secret + secrets.token_bytes(3 << 20), name="large").content_id
    everywhere(trio, small)
    eventually(lambda: c.state(large) == "pending", "the large content is known")
    ballot_id = a.client.forget(small, large).ballot_id
    eventually(lambda: c.ballot(ballot_id), "the others see the ballot")
    assert c.client.consent(ballot_id).state == "open"
    eventually(lambda: (r := b.ballot(ballot_id)) and len(r.consents) == 2, "the consent is seen")
    c.stop()
    assert b.client.consent(ballot_id).state == "carried"
    eventually(lambda: len(a.ballot(ballot_id).receipts) == 2, "the two that run have erased")
    c.start()
    receipted(trio, ballot_id)
    for content_id in (small, large):
        with pytest.raises(ForgottenError):
            c.client.request(content_id)
    assert find_canaries(c.home, {"content": secret}) == []
    c.stop()
    c.start()
    meet(*trio)
    agree(*trio)
    for member in trio:
        assert {member.state(small), member.state(large)} == {"forgotten"}
        rows = {r["content_id"]: r for r in member.client.audit(read_data=True)["contents"]}
        assert [rows[i]["stored_here"] for i in (small, large)] == [False, False]


def test_one_refusal_of_three_ends_a_ballot_for_all(trio: Trio) -> None:
    """After a consent and a refusal nothing is erased; a new ballot about the same content may carry."""
    a, b, c = trio
    content_id = b.client.publish(b"still needed").content_id
    everywhere(trio, content_id)
    first = a.client.forget(content_id).ballot_id
    for member in (b, c):
        eventually(lambda m=member: m.ballot(first), "the others see the ballot")  # type: ignore[misc]
    assert b.client.consent(first).state == "open"
    run(c.home, "refuse", first, "--reason", "still needed")
    for member in trio:
        eventually(lambda m=member: m.ballot(first).state == "refused", "all see that it ended")  # type: ignore[misc]
        assert member.client.request(content_id) == b"still needed"
    second = c.client.forget(content_id).ballot_id
    assert second != first
    for member in (a, b):
        eventually(lambda m=member: m.ballot(second), "the others see the new ballot")  # type: ignore[misc]
        member.client.consent(second)
    receipted(trio, second)
    agree(*trio)


@pytest.fixture(scope="module")
def network(trio: Trio) -> Iterator[CutNetwork]:
    """What the three nodes talk through from now on."""
    cut_network = CutNetwork(*trio)
    try:
        yield cut_network
    finally:
        cut_network.close()


def test_halves_that_live_and_publish_while_cut_from_each_other_heal(trio: Trio, network: CutNetwork) -> None:
    """Two and one publish at the same time and hear nothing of each other; healed, all have all, in equal views."""
    a, b, c = trio
    network.cut(c)
    with ThreadPoolExecutor(3) as pool:
        halves = list(pool.map(lambda m: _publish_many(m, 20), trio))
    ours, theirs = halves[0] | halves[1], halves[2]
    for member in (a, b):
        eventually(lambda m=member: all(m.state(i) == "available" for i in ours), "a half goes on by itself")  # type: ignore[misc]
        assert not any(member.row(i) for i in theirs)
    assert not any(c.row(i) for i in ours)
    ballot_id = a.client.forget(gone := next(iter(halves[0]))).ballot_id
    eventually(lambda: b.ballot(ballot_id), "the ballot is seen in its half")
    assert b.client.consent(ballot_id).state == "open", "a half cannot forget for the other"
    assert a.hashes()["catalogue"] != c.hashes()["catalogue"]
    network.heal()
    for content_id in (ours | theirs).keys() - {gone}:
        everywhere(trio, content_id)
    eventually(lambda: c.ballot(ballot_id), "the ballot is seen in the other half")
    c.client.consent(ballot_id)
    receipted(trio, ballot_id)
    meet(*trio)
    agree(*trio)
    for member in trio:
        assert all(member.client.request(i) == data for i, data in (ours | theirs).items() if i != gone)
        assert member.client.audit()["ok"]


def _publish_many(member: Member, count: int) -> dict[str, bytes]:
    """Publish small contents one after the other; content id -> data."""
    made = [b"%d on %s" % (number, member.home.name.encode()) for number in range(count)]
    return {member.client.publish(data).content_id: data for data in made}


def held_by_two(publisher: Member, holder: Member, data: bytes) -> str:
    """A content that its publisher and one more hold."""
    content_id = publisher.client.publish(data).content_id
    eventually(lambda: holder.row(content_id), "the content is known")
    assert holder.client.request(content_id) == data
    return content_id


def test_a_holder_that_dies_while_it_serves_is_replaced(trio: Trio) -> None:
    """Of two holders one is killed in the middle of a content: who asked for it gets all of it all the same."""
    a, b, c = trio
    data = secrets.token_bytes(96 * MIB)
    content_id = held_by_two(c, a, data)
    c.stop()
    c.start_as("support.faulty_process", **{FAULT_VARIABLE: "serve.before_segment:3"})
    meet(*trio)
    eventually(lambda: b.state(content_id) == "pending", "the content is known")
    assert b.client.request(content_id, timeout=60) == data
    assert c.node is not None
    assert not c.node.running, "it died on the way"
    c.stop()
    c.start()
    meet(*trio)
    agree(*trio)


def test_a_member_that_serves_lies_is_not_believed(trio: Trio) -> None:
    """Its wrong bytes are refused: what another holds comes from there, and what it alone holds when it is honest."""
    a, b, c = trio
    data, alone = secrets.token_bytes(3 * MIB + 5), secrets.token_bytes(3 * MIB + 5)
    held, not_held = held_by_two(c, a, data), c.client.publish(alone).content_id
    c.stop()
    c.start_as("support.lying_process", **{LIE_VARIABLE: "wrong_bytes"})
    meet(*trio)
    eventually(lambda: b.row(held) and b.row(not_held), "the contents are known")
    with pytest.raises(VaultError):
        b.client.request(not_held, timeout=3)
    assert b.state(not_held) == "pending"
    assert b.client.request(held, timeout=60) == data
    c.stop()
    c.start()
    meet(*trio)
    assert b.client.request(not_held, timeout=60) == alone
    agree(*trio)
    for member in trio:
        assert member.client.audit(read_data=True)["ok"]


@pytest.mark.long
def test_who_missed_a_new_key_works_with_it(trio: Trio, tmp_path: Path) -> None:
    """One is off while another comes back from a backup with a new key at a new address: each reads the other's."""
    a, b, c = trio
    b.client.backup(tmp_path / "backup", with_key_file=True)
    c.stop()
    b.stop()
    b.home = tmp_path / "restored"
    restore_backup(tmp_path / "backup", b.home)
    b.start()
    meet(a, b)
    from_b = b.client.publish(missed := secrets.token_bytes(2 * MIB)).content_id
    a.stop()
    c.start()
    meet(b, c)
    eventually(lambda: c.state(from_b) == "pending", "a batch under the new key is believed")
    assert c.client.request(from_b, timeout=60) == missed
    from_c = c.client.publish(data := secrets.token_bytes(2 * MIB)).content_id
    eventually(lambda: b.state(from_c) == "pending", "and the other way")
    assert b.client.request(from_c, timeout=60) == data, "a key request under the new key is answered"
    announced = [r.device for r in c.client.query("timeline", type="key-announced/1", limit=None)]
    assert announced.count(b.device) == 2
    a.start()
    meet(*trio)
    agree(*trio)
    for member in trio:
        audit = member.client.audit(read_data=True)
        assert (audit["ok"], audit["forks"]) == (True, []), audit["findings"]


def test_a_removal_settles_what_waited_for_the_removed(trio: Trio) -> None:
    """A ballot that waits for one member only carries when that member is removed, which then gets and says nothing."""
    a, b, c = trio
    secret = secrets.token_bytes(32)
    content_id = c.client.publish(secret * 40).content_id
    everywhere(trio, content_id)
    ballot_id = a.client.forget(content_id).ballot_id
    eventually(lambda: b.ballot(ballot_id) and c.ballot(ballot_id), "the others see the ballot")
    assert b.client.consent(ballot_id).state == "open"
    gone = c.did
    b.client.remove(gone)
    for member in (a, b):
        eventually(lambda m=member: m.ballot(ballot_id).state == "carried", "it carries without the removed")  # type: ignore[misc]
        eventually(lambda m=member: len(m.ballot(ballot_id).receipts) >= 2, "both have erased")  # type: ignore[misc]
        assert find_canaries(member.home, {"content": secret}) == []
    after = a.client.publish(b"after the removal", name="after").content_id
    eventually(lambda: b.state(after) == "available", "the members go on")
    eventually(lambda: not c.client.status().peers, "nobody talks to the removed")
    with pytest.raises(VaultError):
        c.client.publish(b"from the removed")
    with pytest.raises(VaultError):
        c.client.request(after)
    agree(a, b)
    assert a.client.audit()["ok"]
    assert b.client.audit()["ok"]
