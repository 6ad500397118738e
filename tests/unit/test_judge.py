"""Every class of forgery is refused with its reason, and honest events are not disturbed (security.md 1-2)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from support.judge_world import World
from support.log_world import Device, note
from walytis_vault.adapters.crypto.signing import HybridSigner
from walytis_vault.domain import faults
from walytis_vault.domain.batch import ENVELOPE_BYTES, SignedBatch
from walytis_vault.domain.errors import StorageFullError
from walytis_vault.domain.events import (
    ContentRetracted,
    DeviceRemoved,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
    VaultFounded,
    to_dcb,
)
from walytis_vault.domain.limits import LIMITS


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh vault."""
    return World(tmp_path)


def _reencode(batch: SignedBatch, signer: HybridSigner, **changes: object) -> bytes:
    from walytis_vault.domain.batch import seal_batch

    return seal_batch(msgspec.structs.replace(batch.body, **changes), signer).envelope()


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


FORGERIES: dict[str, tuple[Callable[[World], bytes], str]] = {
    "foreign key": (
        lambda w: Device("mallory").batch(w.vault, [note(1)], number=1, heads=[w.tip]).envelope(),
        "not announced in the batch's causal past",
    ),
    "key not announced in the causal past": (
        lambda w: w.second.batch(w.vault, [note(1)], number=1, heads=[w.root]).envelope(),
        "not announced in the batch's causal past",
    ),
    "key of another device": (
        lambda w: _reencode(w.next(), w.second.signer, author=w.founder.device),
        "belongs to another device",
    ),
    "signed by another than it says": (
        lambda w: w.second.batch(w.vault, [note(1)], number=1, heads=[w.tip], signer=w.founder.signer).envelope(),
        "signature does not verify",
    ),
    "bad Ed25519 signature": (lambda w: _flip(w.next().envelope(), 1), "signature does not verify"),
    "bad ML-DSA-65 signature": (lambda w: _flip(w.next().envelope(), 65), "signature does not verify"),
    "changed body": (lambda w: _flip(w.next().envelope(), len(w.next().envelope()) - 1), "signature does not verify"),
    "another vault": (
        lambda w: w.second.batch("QmOther", [note(1)], number=1, heads=[w.tip]).envelope(),
        "another vault",
    ),
    "truncated": (lambda w: w.next().envelope()[:-1], "malformed batch"),
    "only a signature": (lambda w: w.next().envelope()[:ENVELOPE_BYTES], "truncated"),
    "oversized": (lambda w: w.next().envelope() + b"\0" * LIMITS.batch_body, "exceeds"),
    "trailing bytes": (lambda w: w.next().envelope() + b"\0", "malformed batch"),
    "unknown version byte": (lambda w: b"\2" + w.next().envelope()[1:], "unknown batch version 2"),
    "unknown version inside": (lambda w: _reencode(w.next(), w.second.signer, version=2), "unknown batch version 2"),
    "number gap": (
        lambda w: w.second.batch(w.vault, [note(3)], number=3, previous=w.accept(w.next()), heads=[w.tip]).envelope(),
        "does not follow",
    ),
    "previous batch of another device": (
        lambda w: w.second.batch(w.vault, [note(2)], number=2, previous=w.tip).envelope(),
        "does not follow",
    ),
    "previous batch of another device, with the number before": (
        lambda w: w.second.batch(w.vault, [note(3)], number=3, previous=w.tip).envelope(),
        "does not follow",
    ),
    "first batch with a previous one": (
        lambda w: w.second.batch(w.vault, [note(1)], number=1, previous=w.tip).envelope(),
        "first batch",
    ),
    "no cause": (lambda w: w.second.batch(w.vault, [note(1)], number=1).envelope(), "without a cause"),
    "a second founding": (
        lambda w: w.second.batch(
            w.vault, [VaultFounded(founder=w.second.member, group="g")], number=1, heads=[w.tip]
        ).envelope(),
        "founded once",
    ),
    "a key for somebody else": (
        lambda w: w.second.batch(
            w.vault, [KeyAnnounced(keys=Device("x", w.founder).keys(w.vault))], number=1, heads=[w.tip]
        ).envelope(),
        "another member",
    ),
    "removal that cuts deeper than its author saw": (
        lambda w: w.second.batch(
            w.vault,
            [
                MemberRemoved(
                    member=w.founder.member,
                    accepted=(LastBatch(device=w.founder.device, number=1, batch_id=w.root),),
                )
            ],
            number=1,
            heads=[w.tip],
        ).envelope(),
        "last batches",
    ),
    "admission under another's name": (
        lambda w: w.second.batch(
            w.vault,
            [MemberAdmitted(member="did:test:other", keys=Device("x").keys(w.vault), invitation=bytes(32))],
            number=1,
            heads=[w.tip],
        ).envelope(),
        "not the new member's first device's",
    ),
    "admission with the keys of a second device": (
        lambda w: w.second.batch(
            w.vault,
            [
                MemberAdmitted(
                    member=(other := Device("x")).member, keys=Device("y", other).keys(w.vault), invitation=bytes(32)
                )
            ],
            number=1,
            heads=[w.tip],
        ).envelope(),
        "not the new member's first device's",
    ),
    "removal of the own device": (
        lambda w: w.second.batch(
            w.vault,
            [DeviceRemoved(member=w.second.member, device=w.second.device, accepted=())],
            number=1,
            heads=[w.tip],
        ).envelope(),
        "no other device of that member",
    ),
    "removal of a device of somebody else's": (
        lambda w: w.second.batch(
            w.vault,
            [DeviceRemoved(member=w.founder.member, device="did:test:nobody", accepted=())],
            number=1,
            heads=[w.tip],
        ).envelope(),
        "no other device of that member",
    ),
    "removal of oneself": (
        lambda w: w.second.batch(
            w.vault, [MemberRemoved(member=w.second.member, accepted=())], number=1, heads=[w.tip]
        ).envelope(),
        "policy does not let",
    ),
    "removal of a stranger": (
        lambda w: w.second.batch(
            w.vault, [MemberRemoved(member="did:test:nobody", accepted=())], number=1, heads=[w.tip]
        ).envelope(),
        "not a member",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused_with_its_reason(world: World, name: str) -> None:
    """The block is refused (or, if a newer version may have made it, unreadable) with a reason; no event enters."""
    forge, reason = FORGERIES[name]
    content = forge(world)
    before = world.log.index.horizon
    verdict, why = world.give(content)
    assert verdict == ("unreadable" if reason.startswith("unknown") else "refused")
    assert reason in (why or "")
    assert world.log.index.horizon == before


def test_an_honest_batch_is_accepted_after_every_forgery(world: World) -> None:
    """Refusals leave no trace that disturbs what honest members write afterwards."""
    for name, (forge, _) in FORGERIES.items():
        if name != "number gap":
            world.give(forge(world))
    world.accept(world.next())


def test_a_batch_replayed_in_a_new_block_counts_once(world: World) -> None:
    """The same batch in a second block is a duplicate."""
    batch = world.next()
    world.accept(batch)
    before = world.log.index.horizon
    assert world.give(batch.envelope())[0] == "duplicate"
    assert world.log.index.horizon == before


def test_a_superseded_key_signs_no_more(world: World) -> None:
    """A batch that knows of the new key may not use the old one; one that does not know of it may."""
    renewed = Device("second")
    renewed.device = renewed.member = world.second.device
    announced = world.second.batch(
        world.vault,
        [KeyAnnounced(keys=renewed.keys(world.vault), supersedes=world.second.signer.key_id)],
        number=1,
        heads=[world.tip],
    )
    first = world.accept(announced)
    verdict, why = world.give(
        world.second.batch(world.vault, [note(1)], number=2, previous=first, heads=[world.tip]).envelope()
    )
    assert (verdict, "superseded" in (why or "")) == ("refused", True)
    world.accept(renewed.batch(world.vault, [note(1)], number=2, previous=first, heads=[world.tip]))


def test_a_fork_is_kept_on_both_sides_and_reported(world: World) -> None:
    """Two different batches with one number are both recorded, and the device is named."""
    world.accept(world.next())
    world.accept(world.second.batch(world.vault, [note(99)], number=1, heads=[world.tip]))
    assert world.log.index.forks() == [(world.second.device, 1)]


def test_a_batch_waits_for_its_cause_and_then_enters(world: World) -> None:
    """A batch that names an unknown predecessor is parked, and accepted when the predecessor arrives."""
    first = world.next()
    second = world.second.batch(world.vault, [note(2)], number=2, previous=first.batch_id, heads=[world.tip])
    assert world.give(second.envelope())[0] == "waiting"
    before = world.log.index.horizon
    world.accept(first)
    assert world.log.index.horizon == before + 2


def test_a_removed_member_writes_nothing_new(world: World) -> None:
    """Batches that know of the removal are refused; backdated ones that it does not name are void."""
    accepted = world.accept(world.next())
    cut = LastBatch(device=world.second.device, number=1, batch_id=accepted)
    removal = world.founder.batch(
        world.vault,
        [MemberRemoved(member=world.second.member, accepted=(cut,))],
        number=3,
        previous=world.tip,
        heads=[accepted],
    )
    removed = world.accept(removal)
    late = world.second.batch(world.vault, [note(2)], number=2, previous=accepted, heads=[removed])
    assert "removed" in (world.give(late.envelope())[1] or "")
    backdated = world.second.batch(world.vault, [note(3)], number=2, previous=accepted, heads=[world.tip])
    world.accept(backdated)
    wanted = {note(1).content_id, note(3).content_id}
    found = {e.event.data for e in world.log.recorder.read()}
    visible = {c for c in wanted if msgspec.msgpack.encode(ContentRetracted(content_id=c)) in found}
    assert visible == {note(1).content_id}


def test_a_removal_voids_what_was_accepted_before_it_arrived(world: World) -> None:
    """A batch beyond the cut becomes void when the concurrent removal is known, and views are told."""
    told: list[bool] = []
    world.log.ledger.on_voided(lambda: told.append(True))
    first = world.accept(world.next())
    world.accept(world.second.batch(world.vault, [note(2)], number=2, previous=first, heads=[world.tip]))
    before = len(list(world.log.recorder.read()))
    cut = LastBatch(device=world.second.device, number=1, batch_id=first)
    world.accept(
        world.founder.batch(
            world.vault,
            [MemberRemoved(member=world.second.member, accepted=(cut,))],
            number=3,
            previous=world.tip,
            heads=[first],
        )
    )
    assert told
    assert len(list(world.log.recorder.read())) == before + 1 - 1


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_junk_blocks_cost_little_and_hide_nothing(world: World, count: int) -> None:
    """A flood of junk, some of it well-formed, enters nothing, is counted, and takes no memory to speak of."""
    parent = world.chain.leaves()[:1]
    mallory = Device("mallory")
    template = mallory.batch(world.vault, [note(0)], number=1, heads=[world.tip])
    orphan = mallory.batch(world.vault, [note(0)], number=2, previous=b"?" * 32, heads=[world.tip])
    for number in range(count):
        junk = (
            b"\1" + number.to_bytes(4, "big"),
            _flip(template.envelope(), 70 + number % 3000),
            _reencode(orphan, mallory.signer, previous=number.to_bytes(32, "big")),
        )[number % 3]
        world.network.inject(junk, parents=parent)
    before, refused_before = world.log.index.horizon, world.log.index.verdict_counts().get("refused", 0)
    tracemalloc.start()
    world.log.reconciler.catch_up()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert world.log.index.horizon == before
    counts = world.log.index.verdict_counts()
    assert counts["refused"] + counts["waiting"] - refused_before == count
    world.log.start()
    world.log.recorder.append([to_dcb(note(count))])
    assert world.log.index.horizon == before + 1
    world.log.close()
    assert max(len(ref.parents) for ref in world.chain.blocks()) <= 2


def test_a_copy_with_other_signatures_is_not_taken_for_the_batchs_block(world: World) -> None:
    """A batch that came directly waits for its own block; a stranger's copy with a changed signature is refused."""
    batch = world.second.batch(world.vault, [note(7)], number=1, heads=[world.tip])
    assert not world.log.reconciler.accept([batch.envelope()])
    envelope = batch.envelope()
    for at in (5, 500):
        copy = envelope[:at] + bytes([envelope[at] ^ 1]) + envelope[at + 1 :]
        assert world.give(copy) == ("refused", "repeats a batch with another signature")
    assert world.log.index.without_block() == (1, [batch.batch_id])
    assert world.give(envelope) == ("accepted", None)
    assert world.log.index.without_block() == (0, [])


def test_a_transaction_that_was_rolled_back_leaves_no_membership_behind(world: World) -> None:
    """What was folded for a past that was never written down is not taken for that of the next one."""
    third, fourth = Device("third"), Device("fourth")

    def admitting(device: Device, secret: bytes) -> MemberAdmitted:
        return MemberAdmitted(member=device.member, keys=device.keys(world.vault), invitation=secret * 32)

    a = world.accept(world.founder.batch(world.vault, [admitting(third, b"a")], number=3, previous=world.tip))
    b = world.accept(world.second.batch(world.vault, [admitting(fourth, b"b")], number=1, heads=[world.tip]))
    knows_third = third.batch(world.vault, [note(1)], number=1, heads=[a])
    knows_fourth = fourth.batch(world.vault, [note(2)], number=1, heads=[b])

    def full(point: str) -> None:
        if point == "accept.before_commit":
            raise StorageFullError("no room")

    faults.install(full)
    try:
        with pytest.raises(StorageFullError):
            world.log.reconciler.accept([knows_third.envelope()])
    finally:
        faults.install(None)
    world.accept(knows_fourth)
    world.accept(knows_third)
