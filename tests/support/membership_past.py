"""Membership facts by hand, as batches of one event each, and their fold in every order of arrival."""

from __future__ import annotations

import hashlib
import itertools

from support.view_world import keys_of
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.membership import Membership, MembershipFact, fold_membership

ROOT = BatchId(b"r" * 32)


class Past:
    """Membership facts as batches, one event each; a batch's number counts what its device wrote."""

    def __init__(self, policy: str = ev.ANY_MEMBER) -> None:
        self.facts: list[MembershipFact] = []
        self._numbers: dict[str, int] = {}
        self._last: dict[str, bytes] = {}
        self._place: dict[bytes, tuple[str, int]] = {}
        self.say("F", 1, ev.VaultFounded(founder="F", group="G", removal_policy=policy), root=True)
        self.say("F", 1, ev.KeyAnnounced(keys=keys_of("F", "F")), root=True, index=1)

    def say(self, device: str, depth: int, event: ev.Event, *, root: bool = False, index: int = 0) -> None:
        """A device (`M/2` is the second of `M`) says something at a causal depth."""
        member = device.partition("/")[0]
        if index == 0:
            self._numbers[device] = self._numbers.get(device, 0) + 1
        number = self._numbers[device]
        batch_id = ROOT if root else hashlib.sha256(f"{device} {number}".encode()).digest()
        self._last[device] = batch_id
        self._place[batch_id] = device, number
        origin = ev.Origin(
            batch_id=batch_id, index=index, depth=depth, author=member, device=device, number=number, time_ms=0
        )
        key_id = key_id_of_device(keys_of(member, device))
        self.facts.append(MembershipFact(event=event, origin=origin, key_id=key_id))

    def admit(self, by: str, depth: int, member: str) -> None:
        """A member lets another in."""
        keys, invitation = keys_of(member, member), hashlib.sha256(f"{by} {member}".encode()).digest()
        self.say(by, depth, ev.MemberAdmitted(member=member, keys=keys, invitation=invitation))

    def add_device(self, by: str, depth: int, device: str) -> None:
        """A device of a member announces another."""
        self.say(by, depth, ev.KeyAnnounced(keys=keys_of(device.partition("/")[0], device)))

    def cut(self, *devices: str) -> tuple[ev.LastBatch, ...]:
        """The last batches of devices, as known now."""
        return tuple(
            ev.LastBatch(device=d, number=self._numbers[d], batch_id=self._last[d])
            for d in devices
            if d in self._numbers
        )

    def last(self, device: str) -> bytes:
        """Id of a device's last batch."""
        return self._last[device]

    def leads(self, batch_id: bytes, last: ev.LastBatch) -> bool:
        """See `domain.removals.Leads`; nobody forks here, and a batch that was never said leads nowhere."""
        device, number = self._place.get(batch_id, ("", 0))
        return device == last.device and number <= last.number

    def fold(self) -> Membership:
        """The verdict, after making sure that it is the same in every order (or in many, when there are too many)."""
        first = fold_membership(self.facts, ROOT, self.leads)
        orders = itertools.permutations(self.facts) if len(self.facts) <= 6 else self._some_orders()
        for order in orders:
            assert fold_membership(order, ROOT, self.leads) == first
        return first

    def _some_orders(self) -> list[list[MembershipFact]]:
        facts = self.facts
        turned = [facts[i:] + facts[:i] for i in range(len(facts))]
        return [*turned, *(list(reversed(t)) for t in turned)]
