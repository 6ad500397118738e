"""A member with two devices, and another member, on three real nodes: one author, one vote, three receipts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from support.canaries import find_canaries
from support.command_line import as_json, run
from support.peer_nodes import Member, agree, eventually, found, join, meet, stop_all
from walytis_vault import ConflictError, ForgottenError, PermissionRefusedError, UnknownIdError, VaultError

pytestmark = pytest.mark.long
Family = tuple[Member, Member, Member]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A founder's two devices, and a member that the second device invited, all running and connected."""
    folder = tmp_path_factory.mktemp("family")
    members: list[Member] = []
    try:
        members.append(first := found(folder / "m1"))
        members.append(second := join(folder / "m2", first, device=True))
        members.append(other := join(folder / "n", second))
        meet(*members)
        yield first, second, other
    finally:
        stop_all(members)


def test_both_devices_are_one_member(family: Family) -> None:
    """Status names member and device; the view, JSON and the table show the tree; each device certified itself."""
    first, second, other = family
    assert first.did == second.did != other.did
    assert first.device == first.did
    assert second.device not in (first.did, other.did)
    for member in family:
        mine, theirs = eventually(lambda m=member: (r := m.client.members()) and len(r) == 2 and r, "two members")  # type: ignore[misc]
        assert (mine.did, mine.founder, theirs.did) == (first.did, True, other.did)
        assert {d["device"] for d in mine.devices} == {first.device, second.device}
        assert {d["state"] for d in mine.devices} == {"member"}
        assert [d["added_by"] for d in mine.devices if d["device"] == second.device] == [first.device]
        assert [d["device"] for d in theirs.devices] == [other.did]
        assert [len(r["devices"]) for r in as_json(member.home, "members")] == [2, 1]
        lines = run(member.home, "members").stdout.decode().splitlines()[1:]
        assert [line.split()[0] for line in lines] == [first.did, *sorted({first.device, second.device}), other.did]
        assert [line.startswith("  ") for line in lines] == [False, True, True, False]
    announced = second.client.query("timeline", type="key-announced/1", limit=None)
    assert {r.device for r in announced} == {first.device, second.device, other.device}
    agree(*family)


def test_what_one_device_publishes_is_the_members(family: Family) -> None:
    """The author is the member; any of its devices revises, retracts and restores; nobody else does."""
    first, second, other = family
    content_id = second.client.publish(b"from the second device", name="letter").content_id
    for member in family:
        eventually(lambda m=member: m.state(content_id) == "available", "it is everywhere")  # type: ignore[misc]
        row = member.row(content_id)
        assert (row.author, row.device) == (first.did, second.device)
        assert member.client.request(content_id) == b"from the second device"
    revision = first.client.publish(b"revised on the first", revises=content_id).content_id
    eventually(lambda: second.row(revision) and second.row(revision).current, "the revision is seen")
    with pytest.raises(PermissionRefusedError, match="author"):
        other.client.retract(content_id)
    first.client.retract(content_id)
    for member in family:
        eventually(lambda m=member: m.client.query("catalogue", state="retracted", limit=None), "it is hidden")  # type: ignore[misc]
    second.client.restore(content_id)
    eventually(lambda: other.state(revision) == "available", "it is shown again")
    agree(*family)


def test_consent_counts_members_and_receipts_count_devices(family: Family) -> None:
    """The other member proposes, the second device consents for its member: carried by 2, erased and signed by 3."""
    first, second, other = family
    secret = secrets.token_bytes(32)
    content_id = first.client.publish(secret * 30).content_id
    for member in family:
        eventually(lambda m=member: m.state(content_id) == "available", "it is everywhere")  # type: ignore[misc]
    ballot_id = other.client.forget(content_id, reason="enough").ballot_id
    eventually(lambda: second.ballot(ballot_id), "the second device sees the ballot")
    assert second.ballot(ballot_id).electorate == tuple(sorted((first.did, other.did)))
    assert second.client.consent(ballot_id).state == "carried"
    for member in family:
        eventually(lambda m=member: (b := m.ballot(ballot_id)) and len(b.receipts) == 3, "three receipts")  # type: ignore[misc]
        ballot = member.ballot(ballot_id)
        assert (ballot.state, len(ballot.consents)) == ("carried", 2)
        assert set(ballot.receipts) == {first.device, second.device, other.device}
        with pytest.raises(ForgottenError):
            member.client.request(content_id)
        assert find_canaries(member.home, {"content": secret}) == []
    agree(*family)


def test_a_lost_device_goes_and_its_member_stays(family: Family) -> None:
    """The other device removes it with a reason; it gets and says nothing more; consent and receipts go on without."""
    first, second, other = family
    gone = second.device
    with pytest.raises(UnknownIdError):
        first.client.remove(first.device, device=True)
    with pytest.raises(ConflictError, match="only device"):
        first.client.remove(other.device, device=True)
    run(first.home, "remove", gone, "--reason", "left on a train")
    for member in (first, other):
        eventually(lambda m=member: _device(m, gone)["state"] == "removed", "the others know")  # type: ignore[misc]
        row = _device(member, gone)
        assert (row["reason"], row["removed_by"]) == ("left on a train", first.did)
        assert [m.state for m in member.client.members()] == ["member", "member"]
    after = first.client.publish(b"after the loss").content_id
    eventually(lambda: other.state(after) == "available", "the others go on")
    eventually(lambda: not second.client.status().peers, "nobody talks to the lost device")
    for attempt in (
        lambda: second.client.publish(b"from the lost device"),
        lambda: second.client.request(after),
        lambda: second.client.invite(),
    ):
        with pytest.raises(VaultError):
            attempt()
    ballot_id = other.client.forget(after).ballot_id
    eventually(lambda: first.ballot(ballot_id), "the ballot is seen")
    assert first.client.consent(ballot_id).state == "carried"
    for member in (first, other):
        eventually(lambda m=member: len(m.ballot(ballot_id).receipts) == 2, "both have erased")  # type: ignore[misc]
        assert member.client.audit()["ok"]
    agree(first, other)


def _device(member: Member, did: str) -> dict[str, Any]:
    """A device's row."""
    return next(d for m in member.client.members() for d in m.devices if d["device"] == did)
