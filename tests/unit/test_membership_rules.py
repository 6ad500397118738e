"""Who may remove whom, devices of one member, and how removals that did not know of each other settle.

Every case is folded in all orders of arrival: the verdict must be one and the same.
"""

from __future__ import annotations

import msgspec
import pytest

from support.membership_past import Past
from support.view_world import keys_of
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.errors import ConflictError, PermissionRefusedError, UnknownIdError
from walytis_vault.domain.membership import decide_remove, full_name


def test_by_default_any_member_removes_any_other() -> None:
    """The youngest member removes the founder: the founder's policy lets it."""
    past = Past()
    past.admit("F", 2, "M")
    past.say("M", 3, ev.MemberRemoved(member="F", accepted=past.cut("F")))
    assert past.fold().active() == ("M",)


def test_under_the_founders_policy_only_the_founder_removes() -> None:
    """A member's removal of another, or of another's device, has no effect; the founder's has."""
    past = Past(ev.FOUNDER)
    past.admit("F", 2, "M")
    past.admit("F", 3, "N")
    past.say("M", 4, ev.MemberRemoved(member="N", accepted=()))
    past.say("N", 4, ev.DeviceRemoved(member="M", device="M", accepted=past.cut("M")))
    folded = past.fold()
    assert (folded.active(), folded.cuts, folded.policy) == (("F", "M", "N"), {}, ev.FOUNDER)
    assert folded.may_remove("F", "M")
    assert not folded.may_remove("M", "N")
    past.say("F", 5, ev.MemberRemoved(member="M", accepted=past.cut("M")))
    assert past.fold().active() == ("F", "N")


def test_nobody_removes_itself() -> None:
    """A removal cannot stand in a batch that it makes void: neither of the own member nor of the own device."""
    past = Past()
    past.admit("F", 2, "M")
    past.say("M", 3, ev.MemberRemoved(member="M", accepted=()))
    past.say("M", 4, ev.DeviceRemoved(member="M", device="M", accepted=past.cut("M")))
    folded = past.fold()
    assert (folded.active(), folded.cuts) == (("F", "M"), {})


@pytest.mark.parametrize("policy", ev.REMOVAL_POLICIES)
def test_a_member_adds_and_removes_its_own_devices(policy: str) -> None:
    """Whatever the policy; the member stays, with the devices that are left, and nobody is waited for in vain."""
    past = Past(policy)
    past.admit("F", 2, "M")
    past.add_device("M", 3, "M/2")
    past.say("M/2", 4, ev.DeviceRemoved(member="M", device="M", accepted=past.cut("M")))
    folded = past.fold()
    member = folded.members["M"]
    assert (member.devices, member.lost, member.removed) == (("M", "M/2"), ("M",), False)
    assert folded.active() == ("F", "M")
    assert [k.device for k in folded.standing()] == ["F", "M/2"]
    assert folded.stands("M/2")
    assert not folded.stands("M")
    assert folded.owner("M/2") == "M"


def test_devices_of_one_member_that_remove_each_other_settle_by_seniority() -> None:
    """The device that was let in first stays; one of them always does."""
    past = Past()
    past.add_device("F", 2, "F/2")
    known = past.cut("F", "F/2")
    past.say("F/2", 3, ev.DeviceRemoved(member="F", device="F", accepted=known[:1]))
    past.say("F", 3, ev.DeviceRemoved(member="F", device="F/2", accepted=known[1:]))
    assert [k.device for k in past.fold().standing()] == ["F"]


def test_two_members_that_remove_each_other_settle_by_seniority() -> None:
    """The senior's removal stands, whichever of them is known first; the junior's batch is void."""
    past = Past()
    past.admit("F", 2, "M")
    past.admit("F", 3, "N")
    known = {m: past.cut(m) for m in "MN"}
    past.say("M", 4, ev.MemberRemoved(member="N", accepted=known["N"]))
    past.say("N", 4, ev.MemberRemoved(member="M", accepted=known["M"]))
    folded = past.fold()
    assert folded.active() == ("F", "M")
    assert folded.is_void(key_id_of_device(keys_of("N", "N")), "N", past.last("N"), past.leads)


def test_who_was_removed_cannot_remove_others_with_backdated_batches() -> None:
    """Not even a senior: its removal of a third one lies beyond the cut and does nothing."""
    past = Past()
    past.admit("F", 2, "M")
    past.admit("F", 3, "N")
    known = past.cut("F")
    past.say("N", 5, ev.MemberRemoved(member="F", accepted=known))
    past.say("F", 4, ev.MemberRemoved(member="M", accepted=()))
    past.admit("F", 5, "X")
    folded = past.fold()
    assert folded.active() == ("M", "N")
    assert folded.is_void(key_id_of_device(keys_of("F", "F")), "F", b"backdated", past.leads)


def test_members_that_remove_each_other_in_a_circle_settle_by_seniority() -> None:
    """The most senior breaks the circle; its removal stays visible although its author goes too."""
    past = Past()
    past.admit("F", 2, "M")
    past.admit("F", 3, "N")
    cuts = {m: past.cut(m) for m in "FMN"}
    for by, victim in (("N", "F"), ("M", "N"), ("F", "M")):
        past.say(by, 4, ev.MemberRemoved(member=victim, accepted=cuts[victim]))
    # F removes M; so M's removal of N does not stand, and N's removal of F does.
    folded = past.fold()
    assert folded.active() == ("N",)
    founder = key_id_of_device(keys_of("F", "F"))
    assert not folded.is_void(founder, "F", past.last("F"), past.leads)
    assert folded.is_void(founder, "F", b"next", past.leads)


def test_a_removal_of_the_member_ends_all_its_devices() -> None:
    """Those that the remover knew keep what it had seen of them; those that it did not know never counted."""
    past = Past()
    past.admit("F", 2, "M")
    past.add_device("M", 3, "M/2")
    known = past.cut("M", "M/2")
    past.add_device("M", 4, "M/3")
    past.say("F", 4, ev.MemberRemoved(member="M", accepted=known))
    folded = past.fold()
    assert [k.device for k in folded.standing()] == ["F"]
    third = key_id_of_device(keys_of("M", "M/3"))
    assert third not in folded.keys
    assert folded.is_void(third, "M/3", b"x" * 32, past.leads)
    assert folded.members["M"].lost == ("M", "M/2")


def test_what_a_lost_device_let_in_behind_its_removal_has_no_say() -> None:
    """A device that was announced beyond the cut is no device, and its own removals do nothing."""
    past = Past()
    past.admit("F", 2, "M")
    past.add_device("M", 3, "M/2")
    known = past.cut("M/2")
    past.add_device("M/2", 4, "M/3")
    past.say("M/3", 5, ev.DeviceRemoved(member="M", device="M/2", accepted=()))
    past.say("M/3", 6, ev.MemberRemoved(member="F", accepted=past.cut("F")))
    past.say("M", 4, ev.DeviceRemoved(member="M", device="M/2", accepted=known))
    folded = past.fold()
    assert folded.active() == ("F", "M")
    assert folded.members["M"].devices == ("M", "M/2")
    assert [k.device for k in folded.standing()] == ["F", "M"]


def test_a_removed_device_does_not_come_back() -> None:
    """Announced again, with new keys or old ones, it stays cut off: a new device has a new DID."""
    past = Past()
    past.add_device("F", 2, "F/2")
    past.say("F", 3, ev.DeviceRemoved(member="F", device="F/2", accepted=()))
    past.add_device("F", 4, "F/2")
    assert [k.device for k in past.fold().standing()] == ["F"]


def test_a_device_cannot_supersede_the_keys_of_another() -> None:
    """Renewing keys is each device's own; two devices could else lock each other, and their member, out."""
    past = Past()
    past.add_device("F", 2, "F/2")
    old = key_id_of_device(keys_of("F", "F"))
    past.say("F/2", 3, ev.KeyAnnounced(keys=keys_of("F", "F/2"), supersedes=old))
    assert past.fold().superseded == frozenset()


def test_a_stranger_cannot_take_over_a_device() -> None:
    """A device belongs to the member that announced it first; another member's claim is ignored."""
    past = Past()
    past.admit("F", 2, "M")
    past.add_device("F", 3, "F/2")
    stolen = msgspec.structs.replace(keys_of("M", "M/2"), device="F/2")
    past.say("M", 4, ev.KeyAnnounced(keys=stolen))
    folded = past.fold()
    assert folded.owner("F/2") == "F"
    assert folded.members["M"].devices == ("M",)


def test_a_command_to_remove_is_decided_by_who_asks_and_what_is_named() -> None:
    """A DID that is a member's means the member, unless only the device is meant; what stands needs no event."""
    past = Past(ev.FOUNDER)
    past.admit("F", 2, "M")
    past.add_device("M", 3, "M/2")
    past.add_device("F", 3, "F/2")
    folded = past.fold()

    def decide(did: str, by: str, *, only: bool = False) -> ev.Event | None:
        member = by.partition("/")[0]
        return decide_remove(folded, did, by=member, device=by, reason="why", only_device=only)

    assert decide("M", "F") == ev.MemberRemoved(member="M", accepted=(), reason="why")
    assert decide("M", "F", only=True) == ev.DeviceRemoved(member="M", device="M", accepted=(), reason="why")
    assert decide("M/2", "F") == ev.DeviceRemoved(member="M", device="M/2", accepted=(), reason="why")
    assert decide("M", "M/2", only=True) == ev.DeviceRemoved(member="M", device="M", accepted=(), reason="why")
    for did, by, only in (("M", "M", False), ("M", "M", True), ("M", "M/2", False), ("nobody", "F", False)):
        with pytest.raises(UnknownIdError):
            decide(did, by, only=only)
    for did in ("F", "F/2"):
        with pytest.raises(PermissionRefusedError, match="only its founder"):
            decide(did, "M")
    past.say("M", 4, ev.DeviceRemoved(member="M", device="M/2", accepted=()))
    past.say("F", 4, ev.DeviceRemoved(member="F", device="F/2", accepted=()))
    folded = past.fold()
    assert decide("M/2", "M") is None
    with pytest.raises(ConflictError, match="only device"):
        decide("M", "F", only=True)
    past.say("F", 5, ev.MemberRemoved(member="M", accepted=past.cut("M")))
    folded = past.fold()
    assert decide("M", "F") is None


def test_people_need_not_write_whole_names() -> None:
    """A name, the DID in it, or its fingerprint alone mean the same; what means several things means itself."""
    past = Past()
    past.admit("F", 2, "did:x:M#abc")
    folded = past.fold()
    for text in ("did:x:M#abc", "did:x:M", "abc", "#abc"):
        assert full_name(folded, text) == "did:x:M#abc"
    for text in ("", "#", "did:x", "ab", "did:x:m"):
        assert full_name(folded, text) == text


def test_another_device_of_the_member_renews_nobodys_keys() -> None:
    """Keys that one device announces for another that has its own, in the place of those, are not taken."""
    past = Past()
    past.add_device("F", 2, "F/2")
    old = key_id_of_device(keys_of("F", "F"))
    stolen = msgspec.structs.replace(keys_of("F", "evil"), device="F", member="F")
    past.say("F/2", 3, ev.KeyAnnounced(keys=stolen, supersedes=old))
    folded = past.fold()
    assert folded.refusal(old, "F") is None
    assert folded.refusal(key_id_of_device(stolen), "F") is not None
