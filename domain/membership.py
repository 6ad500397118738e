"""Membership and keys as a pure fold over membership events: the same verdict for every order of arrival.

Two questions are answered. *Accept*: is a signing key valid for a batch, given only what stands in the batch's
causal past? *Void*: does a batch count, given everything that is known? A removal names the last batch of each
of the victim's devices that it accepts, so a batch that was accepted can become void when a concurrent removal
arrives. Concurrent removals settle by seniority (who was admitted first), which nobody can grind for: ADR 0006.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.events import (
    DeviceKeys,
    Event,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
    Origin,
    VaultFounded,
)
from walytis_vault.domain.ids import BatchId, KeyId


class MembershipFact(msgspec.Struct, frozen=True, kw_only=True):
    """One membership event of an accepted batch, and the key that signed it."""

    event: Event
    origin: Origin
    key_id: bytes


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A member as the fold sees it."""

    did: str
    seniority: int
    """0 for the founder, then by order of admission."""
    admitted_by: str
    """Member DID; the founder admitted itself."""
    devices: tuple[str, ...]
    removed: bool


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Who is a member and which keys count, for one set of facts."""

    group: str
    members: Mapping[str, Member]
    keys: Mapping[KeyId, DeviceKeys]
    """Every key that ever counted, superseded ones and those of removed members included."""
    superseded: frozenset[KeyId]
    cuts: Mapping[str, LastBatch | None]
    """Device -> last batch that counts; None when none does. Devices without a cut are not listed."""

    def active(self) -> tuple[str, ...]:
        """DIDs of the members that were not removed, sorted: the electorate of a new ballot."""
        return tuple(sorted(did for did, m in self.members.items() if not m.removed))

    def refusal(self, key_id: KeyId, device: str) -> str | None:
        """Why a batch signed by this key, with these facts in its causal past, is refused; None if it is not."""
        keys = self.keys.get(key_id)
        if keys is None:
            return "signing key was not announced in the batch's causal past"
        if keys.device != device:
            return "signing key belongs to another device"
        if key_id in self.superseded:
            return "signing key was superseded in the batch's causal past"
        member = self.members.get(keys.member)
        if member is None or member.removed:
            return "author was removed in the batch's causal past"
        return None

    def is_void(self, key_id: KeyId, device: str, number: int, batch_id: bytes) -> bool:
        """Whether an accepted batch does not count, given all facts that are known."""
        if key_id not in self.keys:
            return True
        if device not in self.cuts:
            return False
        cut = self.cuts[device]
        return cut is None or number > cut.number or (number == cut.number and batch_id != cut.batch_id)


def fold_membership(facts: Iterable[MembershipFact], root: BatchId) -> Membership:
    """Fold a set of facts; their order does not matter.

    Args:
        facts: membership events of accepted batches, each once.
        root: id of the founding batch, known from `init` or from the invitation.
    """
    ordered = sorted(facts, key=lambda f: f.origin.order)
    dropped: set[str] = set()
    while True:
        # A removal can void the admission of a member whose own removals were already counted. Dropping such
        # members only ever grows, so this ends, and it is a function of the set of facts alone.
        folded = _Fold(ordered, root, frozenset(dropped))
        ghosts = folded.ghosts()
        if not ghosts:
            return folded.result()
        dropped |= ghosts


class _Fold:
    """One pass, with some members ignored."""

    def __init__(self, ordered: list[MembershipFact], root: BatchId, dropped: frozenset[str]) -> None:
        self._root = root
        self._dropped = dropped
        self._group = ""
        self._founder = ""
        self._admitted_by: dict[str, str] = {}
        self._seniority: dict[str, int] = {}
        self._admission: dict[str, MembershipFact] = {}
        self._keys: dict[KeyId, DeviceKeys] = {}
        self._key_fact: dict[KeyId, MembershipFact] = {}
        self._invitations: set[bytes] = set()
        self._superseded: dict[KeyId, MembershipFact] = {}
        self._removed: set[str] = set()
        self._cuts: dict[str, LastBatch | None] = {}
        for fact in ordered:
            self._admit(fact)
        removals = [f for f in ordered if isinstance(f.event, MemberRemoved)]
        for fact in sorted(removals, key=lambda f: (self._rank(f), f.origin.order)):
            self._remove(fact)

    def _admit(self, fact: MembershipFact) -> None:
        """Pass 1: who came in, in deterministic order, removals ignored."""
        event = fact.event
        if isinstance(event, VaultFounded) and fact.origin.batch_id == self._root and not self._founder:
            self._founder, self._group = event.founder, event.group
            self._enter(event.founder, event.founder, fact)
        elif isinstance(event, KeyAnnounced):
            founding = fact.origin.batch_id == self._root and event.keys.member == self._founder
            if founding or self._author(fact) == event.keys.member:
                self._add_key(event.keys, fact)
                old = KeyId(event.supersedes) if event.supersedes else None
                if old in self._keys and self._keys[old].member == event.keys.member:
                    self._superseded.setdefault(old, fact)
        elif isinstance(event, MemberAdmitted):
            author = self._author(fact)
            fresh = event.invitation not in self._invitations and event.member not in self._admitted_by
            if author and fresh and event.keys.member == event.member and event.member not in self._dropped:
                self._invitations.add(event.invitation)
                self._enter(event.member, author, fact)
                self._add_key(event.keys, fact)

    def _enter(self, did: str, by: str, fact: MembershipFact) -> None:
        self._admitted_by[did] = by
        self._seniority[did] = len(self._seniority)
        self._admission[did] = fact

    def _add_key(self, keys: DeviceKeys, fact: MembershipFact) -> None:
        key_id = key_id_of_device(keys)
        owner = next((k.member for k in self._keys.values() if k.device == keys.device), keys.member)
        if owner == keys.member and key_id not in self._keys:
            self._keys[key_id] = keys
            self._key_fact[key_id] = fact

    def _author(self, fact: MembershipFact) -> str | None:
        """Member DID behind the signature; None when the key is not (or no longer) that of a member."""
        keys = self._keys.get(KeyId(fact.key_id))
        return keys.member if keys and keys.member in self._admitted_by else None

    def _rank(self, fact: MembershipFact) -> int:
        return self._seniority.get(self._author(fact) or "", len(self._seniority))

    def _remove(self, fact: MembershipFact) -> None:
        """Pass 2: removals, seniors first; one in a void batch does nothing."""
        event = fact.event
        assert isinstance(event, MemberRemoved)
        if self._author(fact) is None or event.member not in self._admitted_by or self._is_void(fact):
            return
        self._removed.add(event.member)
        accepted = {a.device: a for a in event.accepted}
        devices = {k.device for k in self._keys.values() if k.member == event.member}
        for device in devices:
            self._cuts[device] = _stricter(self._cuts, device, accepted.get(device))

    def _is_void(self, fact: MembershipFact) -> bool:
        device = fact.origin.device
        if device not in self._cuts:
            return False
        cut = self._cuts[device]
        return cut is None or fact.origin.number > cut.number

    def ghosts(self) -> set[str]:
        """Members whose admission stands in a void batch."""
        return {did for did, fact in self._admission.items() if did != self._founder and self._is_void(fact)}

    def result(self) -> Membership:
        """The verdict."""
        live_keys = {i: k for i, k in self._keys.items() if not self._is_void(self._key_fact[i])}
        devices: dict[str, set[str]] = {did: set() for did in self._admitted_by}
        for keys in live_keys.values():
            devices[keys.member].add(keys.device)
        members = {
            did: Member(
                did=did,
                seniority=self._seniority[did],
                admitted_by=by,
                devices=tuple(sorted(devices[did])),
                removed=did in self._removed,
            )
            for did, by in self._admitted_by.items()
        }
        superseded = frozenset(i for i, fact in self._superseded.items() if not self._is_void(fact))
        return Membership(
            group=self._group, members=members, keys=live_keys, superseded=superseded, cuts=dict(self._cuts)
        )


def _stricter(cuts: Mapping[str, LastBatch | None], device: str, new: LastBatch | None) -> LastBatch | None:
    """Concurrent removals of one member: the earlier cut counts, whichever arrived first."""
    if device not in cuts:
        return new
    old = cuts[device]
    if old is None or new is None:
        return None
    return min(old, new, key=lambda cut: (cut.number, cut.batch_id))
