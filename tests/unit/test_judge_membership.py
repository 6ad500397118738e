"""What the judge asks of membership events by their causes: removals, policies and limits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from support.judge_world import World
from support.log_world import Device
from walytis_vault.adapters.walytis import judge
from walytis_vault.domain.events import (
    FOUNDER,
    DeviceRemoved,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
)
from walytis_vault.domain.limits import LIMITS


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh vault."""
    return World(tmp_path)


def test_a_device_is_removed_once_by_its_member_and_by_whom_the_policy_lets(world: World) -> None:
    """Also where the founder alone removes others, a member's device removes another of its own; then it is gone."""
    phone = Device("phone", world.second)
    announced = world.accept(
        world.second.batch(world.vault, [KeyAnnounced(keys=phone.keys(world.vault))], number=1, heads=[world.tip])
    )
    gone = DeviceRemoved(member=world.second.member, device=phone.device, accepted=())
    removed = world.accept(world.second.batch(world.vault, [gone], number=2, previous=announced))
    again = world.second.batch(world.vault, [gone], number=3, previous=removed)
    assert "no other device" in (world.give(again.envelope())[1] or "")
    cut = LastBatch(device=world.second.device, number=2, batch_id=removed)
    member = world.founder.batch(
        world.vault,
        [
            MemberRemoved(
                member=world.second.member,
                accepted=(cut,),
            )
        ],
        number=3,
        previous=world.tip,
        heads=[removed],
    )
    out = world.accept(member)
    twice = world.founder.batch(
        world.vault, [MemberRemoved(member=world.second.member, accepted=())], number=4, previous=out
    )
    assert "not a member" in (world.give(twice.envelope())[1] or "")


def test_the_founders_policy_is_held_for_devices_too(tmp_path: Path) -> None:
    """A member removes its own device and not another's; the founder does."""
    world = World(tmp_path, FOUNDER)
    phone = Device("phone", world.second)
    announced = world.accept(
        world.second.batch(world.vault, [KeyAnnounced(keys=phone.keys(world.vault))], number=1, heads=[world.tip])
    )
    desk = Device("desk", world.founder)
    theirs = world.accept(
        world.founder.batch(world.vault, [KeyAnnounced(keys=desk.keys(world.vault))], number=3, previous=world.tip)
    )
    foreign = DeviceRemoved(member=world.founder.member, device=desk.device, accepted=())
    refused = world.second.batch(world.vault, [foreign], number=2, previous=announced, heads=[theirs])
    assert "policy does not let" in (world.give(refused.envelope())[1] or "")
    own = DeviceRemoved(member=world.second.member, device=phone.device, accepted=())
    world.accept(world.second.batch(world.vault, [own], number=2, previous=announced, heads=[theirs]))
    world.accept(world.founder.batch(world.vault, [own], number=4, previous=theirs, heads=[announced]))


@pytest.mark.parametrize("limit", ["members", "devices"])
def test_a_vault_takes_no_more_than_its_limits(world: World, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of members, and of devices of one member: the one after the last is refused."""
    monkeypatch.setattr(judge, "LIMITS", msgspec.structs.replace(LIMITS, **{limit: 2}))
    admitted = MemberAdmitted(member=(x := Device("x")).member, keys=x.keys(world.vault), invitation=bytes(32))
    first, second = (Device(name, world.second) for name in "ab")
    if limit == "devices":
        announced = world.second.batch(
            world.vault, [KeyAnnounced(keys=first.keys(world.vault))], number=1, heads=[world.tip]
        )
        tip = world.accept(announced)
        more = world.second.batch(world.vault, [KeyAnnounced(keys=second.keys(world.vault))], number=2, previous=tip)
    else:
        more = world.second.batch(world.vault, [admitted], number=1, heads=[world.tip])
    assert f"at most 2 {limit}" in (world.give(more.envelope())[1] or "")
