"""What lets a member, a device or a key in, and what does not, asked of the fold alone.

The judge refuses most of it before; the fold needs nobody to have done so.
"""

from __future__ import annotations

import msgspec

from support.membership_past import ROOT, Past
from support.view_world import keys_of
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import key_id_of_device


def test_a_vault_has_one_founder() -> None:
    """A founding in another batch, however early it sorts, or again in the founding batch, does nothing."""
    past = Past()
    past.admit("F", 2, "M")
    honest = past.fold()
    again = ev.VaultFounded(founder="M", group="X", removal_policy=ev.FOUNDER)
    past.say("M", 3, again)
    for batch_id, depth, index in ((bytes(32), 0, 0), (ROOT, 1, 2)):
        origin = msgspec.structs.replace(past.facts[0].origin, batch_id=batch_id, depth=depth, index=index)
        past.facts.append(msgspec.structs.replace(past.facts[0], event=again, origin=origin))
    folded = past.fold()
    assert (folded.founder, folded.group, folded.policy) == ("F", "G", ev.ANY_MEMBER)
    assert folded.members == honest.members


def test_the_reason_tells_a_removed_member_from_a_removed_device() -> None:
    """Who reads why a batch was refused learns which of both it was."""
    past = Past()
    past.admit("F", 2, "M")
    past.add_device("F", 2, "F/2")
    past.say("F", 3, ev.MemberRemoved(member="M", accepted=()))
    past.say("F", 4, ev.DeviceRemoved(member="F", device="F/2", accepted=()))
    folded = past.fold()
    assert "author was removed" in (folded.refusal(key_id_of_device(keys_of("M", "M")), "M") or "")
    assert "device was removed" in (folded.refusal(key_id_of_device(keys_of("F", "F/2")), "F/2") or "")


def test_an_admission_takes_nobodys_device_or_key() -> None:
    """Keys of one member under the name of another, for a device that there is, or that there are: none comes in."""
    past = Past()
    past.admit("F", 2, "M")
    honest = past.fold()
    nobody = msgspec.structs.replace(keys_of("N", "N"), member="O")
    past.say("F", 3, ev.MemberAdmitted(member="N", keys=nobody, invitation=b"1" * 32))
    theirs = msgspec.structs.replace(keys_of("N", "N"), device="F")
    past.say("F", 4, ev.MemberAdmitted(member="N", keys=theirs, invitation=b"2" * 32))
    same = msgspec.structs.replace(keys_of("F", "F"), member="M", device="M/2")
    past.say("M", 3, ev.KeyAnnounced(keys=same))
    folded = past.fold()
    assert folded.keys == honest.keys
    assert folded.owner("F") == "F"


def test_an_invitation_admits_once() -> None:
    """Who gave it out cannot admit two members with it; the first counts."""
    past = Past()
    for depth, member in ((2, "M"), (3, "N")):
        keys = keys_of(member, member)
        past.say("F", depth, ev.MemberAdmitted(member=member, keys=keys, invitation=b"i" * 32))
    assert past.fold().active() == ("F", "M")


def test_a_removal_that_leaves_its_author_nothing_to_stand_on_undoes_the_author() -> None:
    """It accepts nothing of the founder, so not the admission of its author either; the founding itself stays."""
    past = Past()
    past.admit("F", 2, "M")
    past.say("M", 3, ev.MemberRemoved(member="F", accepted=()))
    folded = past.fold()
    assert folded.active() == ("F",)
    assert folded.founder == "F"


def test_a_removal_of_what_is_not_there_changes_nothing() -> None:
    """Somebody who was never admitted, or a device of somebody else's."""
    past = Past()
    past.admit("F", 2, "M")
    honest = past.fold()
    past.say("F", 3, ev.MemberRemoved(member="N", accepted=()))
    past.say("F", 4, ev.DeviceRemoved(member="M", device="N", accepted=()))
    past.say("M", 4, ev.DeviceRemoved(member="M", device="F", accepted=()))
    assert past.fold() == honest


def test_nobody_lets_in_what_is_not_theirs_to_let_in() -> None:
    """A key that is nobody's admits nobody; a member announces no key of another, not even the founding batch does."""
    past = Past()
    past.admit("F", 2, "M")
    honest = past.fold()
    past.admit("Z", 3, "N")
    past.say("M", 3, ev.KeyAnnounced(keys=keys_of("F", "F/2")))
    past.say("Z", 3, ev.KeyAnnounced(keys=keys_of("F", "F/2")))
    past.say("F", 1, ev.KeyAnnounced(keys=keys_of("N", "N")), root=True, index=2)
    folded = past.fold()
    assert folded == honest


def test_who_is_a_member_is_not_admitted_again() -> None:
    """Neither a member nor the founder gets another sponsor or another seniority."""
    past = Past()
    past.admit("F", 2, "M")
    past.admit("F", 3, "N")
    honest = past.fold()
    past.admit("N", 4, "M")
    past.admit("N", 5, "F")
    assert past.fold() == honest


def test_a_device_supersedes_its_key_by_its_own_new_one_alone() -> None:
    """Announcing another device's keys in the place of one's own would leave the device without any."""
    past = Past()
    old = key_id_of_device(keys_of("F", "F"))
    past.say("F", 2, ev.KeyAnnounced(keys=keys_of("F", "F/2"), supersedes=old))
    folded = past.fold()
    assert folded.superseded == frozenset()
    assert [k.device for k in folded.standing()] == ["F", "F/2"]
