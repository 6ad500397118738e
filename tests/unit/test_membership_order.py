"""Membership settles alike for every order of arrival: exhaustively for small histories, sampled for large ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.log_world import GROUP, Device, note, open_log
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.events import (
    DeviceKeys,
    Event,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
    VaultFounded,
)

_DEVICES: dict[str, Device] = {}


def _device(name: str) -> Device:
    """Keys are dear to make: one set a name for all histories."""
    return _DEVICES.setdefault(name, Device(name))


class History:
    """A vault's past as its honest and dishonest members wrote it, each knowing only what reached it."""

    def __init__(self, vault_id: str, seed: int, size: int) -> None:
        self._random = random.Random(seed)
        self._vault = vault_id
        self.batches: dict[bytes, SignedBatch] = {}
        self._past: dict[bytes, frozenset[bytes]] = {}
        self._seen: dict[str, set[bytes]] = {}
        self._last: dict[str, tuple[int, bytes]] = {}
        self._invitations = 0
        founder = _device("m0")
        self._members = ["m0"]
        founded = [VaultFounded(founder=founder.member, group=GROUP), KeyAnnounced(keys=founder.keys())]
        self._seen["m0"] = set()
        self.root = self._write("m0", founded)
        for name in ("m1", "m2"):
            self._admit("m0", name)
        while len(self.batches) < size:
            self._step()

    def _step(self) -> None:
        actor = self._random.choice(self._members)
        match self._random.randrange(8):
            case 0 | 1:
                self._write(actor, [note(self._random.randrange(1000))])
            case 2 | 3:
                self._sync(actor, self._random.choice(self._members))
            case 4 | 5:
                victim = self._random.choice(self._members)
                if victim != actor:
                    self._remove(actor, victim)
            case 6:
                if len(self._members) < 6:
                    self._admit(actor, f"m{len(self._members)}")
            case _:
                self._write(actor, [KeyAnnounced(keys=self._fresh_keys(actor))])

    def _fresh_keys(self, name: str) -> DeviceKeys:
        member = _device(name)
        extra = _device(f"{name}-extra")
        extra.member = member.member
        return extra.keys()

    def _sync(self, a: str, b: str) -> None:
        self._seen[a] |= self._seen[b]

    def _admit(self, actor: str, name: str) -> None:
        self._invitations += 1
        keys = _device(name).keys()
        secret = self._invitations.to_bytes(32, "big")
        self._write(actor, [MemberAdmitted(member=keys.member, keys=keys, invitation=secret)])
        self._members.append(name)
        self._seen[name] = set(self._seen[actor])

    def _remove(self, actor: str, victim: str) -> None:
        past = self._seen[actor]
        device = _device(victim).device
        theirs = [self.batches[i] for i in past if self.batches[i].body.author == device]
        accepted = tuple(
            LastBatch(device=device, number=b.body.number, batch_id=b.batch_id)
            for b in sorted(theirs, key=lambda b: -b.body.number)[:1]
        )
        self._write(actor, [MemberRemoved(member=_device(victim).member, accepted=accepted)])

    def _write(self, name: str, events: Sequence[Event]) -> bytes:
        number, previous = self._last.get(name, (0, b""))
        past = self._seen[name]
        covered = frozenset[bytes]().union(*(self._past[i] for i in past)) if past else frozenset()
        heads = [i for i in past if i not in covered and i != previous]
        batch = _device(name).batch(self._vault, events, number=number + 1, previous=previous, heads=heads)
        self.batches[batch.batch_id] = batch
        self._past[batch.batch_id] = frozenset(past)
        past.add(batch.batch_id)
        self._last[name] = (number + 1, batch.batch_id)
        return batch.batch_id


def _outcome(folder: Path, network: MemoryNetwork, name: str, history: History, order: Sequence[bytes]) -> object:
    """Let the batches arrive in this order at a fresh replica; return everything that must not depend on it."""
    replica = network.replica(name)
    genesis = replica.leaves()
    log = open_log(folder / name, replica, _device("m0"), history.root)  # type: ignore[arg-type]
    for batch_id in order:
        network.inject(history.batches[batch_id].envelope(), to=[name], parents=genesis)
        log.reconciler.catch_up()
    with log.index.database.read() as connection:
        rows = sorted(connection.execute("SELECT batch_id, void, depth, author FROM batches").fetchall())
    membership = log.membership()
    visible = sorted((e.event.origin.order, e.event.data) for e in log.recorder.read())  # type: ignore[attr-defined]
    log.close()
    return rows, membership.members, sorted(membership.keys), membership.superseded, membership.cuts, visible


@pytest.mark.parametrize("seed", range(3))
def test_every_order_of_a_small_history_gives_one_verdict(tmp_path: Path, seed: int) -> None:
    """All orders of arrival of the last four batches of a history lead to the same members, keys and voids."""
    network = MemoryNetwork(seed, manual=True)
    history = History(network.chain_id, seed, 7)
    ids = list(history.batches)
    first = None
    for number, tail in enumerate(itertools.permutations(ids[3:])):
        outcome = _outcome(tmp_path, network, f"r{number}", history, [*tail, *ids[:3]])
        first = first or outcome
        assert outcome == first


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(s, marks=pytest.mark.long) for s in range(6, 120))])
def test_shuffled_orders_of_a_large_history_give_one_verdict(tmp_path: Path, seed: int) -> None:
    """Random orders of a history with admissions, key changes and mutual removals settle alike."""
    network = MemoryNetwork(seed, manual=True)
    history = History(network.chain_id, seed + 1000, 40)
    ids = list(history.batches)
    first = _outcome(tmp_path, network, "first", history, ids)
    for number in range(3):
        shuffled = random.Random(number).sample(ids, len(ids))
        assert _outcome(tmp_path, network, f"r{number}", history, shuffled) == first
