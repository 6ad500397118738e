"""Membership and keys as a pure fold over membership events: the same verdict for every order of arrival.

Two questions are answered. *Accept*: is a signing key valid for a batch, given only what stands in the batch's
causal past? *Void*: does a batch count, given everything that is known? A removal names the last batch of each
of the victim's devices that it accepts, so a batch that was accepted can become void when a concurrent removal
arrives. How removals that did not know of each other settle is in `removals`; reasons: ADR 0006.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.errors import ConflictError, PermissionRefusedError, UnknownIdError
from walytis_vault.domain.events import (
    ANY_MEMBER,
    DeviceKeys,
    DeviceRemoved,
    Event,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
    Origin,
    VaultFounded,
)
from walytis_vault.domain.ids import BatchId, KeyId
from walytis_vault.domain.removals import Leads, Removal, is_beyond, settle_removals


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
    """All that it ever had, sorted."""
    lost: tuple[str, ...]
    """Those of them that were removed, alone or with the member."""
    removed: bool


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Who is a member and which keys count, for one set of facts."""

    group: str
    founder: str
    policy: str
    """Who may remove others: one of `REMOVAL_POLICIES`."""
    members: Mapping[str, Member]
    keys: Mapping[KeyId, DeviceKeys]
    """Every key that ever counted, superseded ones and those of removed members included."""
    superseded: frozenset[KeyId]
    cuts: Mapping[str, tuple[LastBatch | None, ...]]
    """Removed device -> what each removal names as its last batch that counts; None when none does."""
    spared: frozenset[bytes]
    """Batches that count although they lie beyond a cut."""

    def active(self) -> tuple[str, ...]:
        """DIDs of the members that were not removed, sorted: the electorate of a new ballot."""
        return tuple(sorted(did for did, m in self.members.items() if not m.removed))

    def standing(self) -> list[DeviceKeys]:
        """The keys of every device that belongs to the vault now."""
        return [k for i, k in self.keys.items() if self.refusal(i, k.device) is None]

    def stands(self, device: str) -> bool:
        """Whether a device belongs to the vault now."""
        return any(k.device == device for k in self.standing())

    def owner(self, device: str) -> str | None:
        """DID of the member whose device this is or was."""
        return next((k.member for k in self.keys.values() if k.device == device), None)

    def may_remove(self, by: str, member: str) -> bool:
        """Whether the founder's policy lets member `by` remove another member, or one of its devices."""
        return by != member and (self.policy == ANY_MEMBER or by == self.founder)

    def refusal(self, key_id: KeyId, device: str) -> str | None:
        """Why a batch signed by this key, with these facts in its causal past, is refused; None if it is not."""
        keys = self.keys.get(key_id)
        if keys is None:
            return "signing key was not announced in the batch's causal past"
        if keys.device != device:
            return "signing key belongs to another device"
        if key_id in self.superseded:
            return "signing key was superseded in the batch's causal past"
        if self.members[keys.member].removed:
            return "author was removed in the batch's causal past"
        if device in self.cuts:
            return "signing device was removed in the batch's causal past"
        return None

    def is_void(self, key_id: KeyId, device: str, batch_id: bytes, leads: Leads) -> bool:
        """Whether an accepted batch does not count, given all facts that are known."""
        return key_id not in self.keys or _is_cut(self.cuts, self.spared, device, batch_id, leads)


def fold_membership(facts: Iterable[MembershipFact], root: BatchId, leads: Leads) -> Membership:
    """Fold a set of facts; their order does not matter.

    Args:
        facts: membership events of accepted batches, each once.
        root: id of the founding batch, known from `init` or from the invitation.
        leads: tells which batches stand before another in their device's chain.
    """
    ordered = sorted(facts, key=lambda f: f.origin.order)
    dropped: set[tuple[int, bytes, int]] = set()
    while True:
        # A removal can void the fact that let somebody in whose own removals were already counted. Dropping such
        # facts only ever grows, so this ends, and it is a function of the set of facts alone.
        folded = _Fold([f for f in ordered if f.origin.order not in dropped], root, leads)
        ghosts = folded.ghosts()
        if not ghosts:
            return folded.result()
        dropped |= ghosts


def full_name(membership: Membership, text: str) -> str:
    """The member or device that a person means: by its name, by the DID in it, or by the fingerprint behind the `#`.

    Returns `text` itself where it means none, or several.
    """
    names = {*membership.members, *(k.device for k in membership.keys.values())}
    if text in names:
        return text
    parts = {n: n.partition("#") for n in names if "#" in n}
    meant = [n for n, (did, sign, fingerprint) in parts.items() if text in (did, fingerprint, sign + fingerprint)]
    return meant[0] if len(meant) == 1 else text


def decide_remove(
    membership: Membership, did: str, *, by: str, device: str, reason: str, only_device: bool
) -> MemberRemoved | DeviceRemoved | None:
    """The removal to record, without what it accepts; None when it stands already.

    Args:
        did: a member's, or a device's; where it is both, the member's unless `only_device`.
        by, device: member and device that ask.
    Raises:
        UnknownIdError: nobody else has this DID. ConflictError: it is the member's last device.
        PermissionRefusedError: the founder's policy does not let `by` remove it.
    """
    owner = did if did in membership.members and not only_device else membership.owner(did)
    if owner is None or did == device or (did == by and not only_device):
        raise UnknownIdError(f"{did[:80]} is no other member or device of this vault: see `walytis-vault members`")
    if membership.members[owner].removed:
        return None
    if owner != by and not membership.may_remove(by, owner):
        raise PermissionRefusedError("by this vault's policy only its founder may remove others")
    if did == owner and not only_device:
        return MemberRemoved(member=did, accepted=(), reason=reason)
    if did in membership.cuts:
        return None
    if {k.device for k in membership.standing() if k.member == owner} <= {did}:
        raise ConflictError(f"it is the only device of {owner}: remove the member instead")
    return DeviceRemoved(member=owner, device=did, accepted=(), reason=reason)


class _Fold:
    """One pass over the facts that are not dropped, in their shared order."""

    def __init__(self, ordered: list[MembershipFact], root: BatchId, leads: Leads) -> None:
        self._root = root
        self._leads = leads
        self._group = ""
        self._founder = ""
        self._policy = ANY_MEMBER
        self._admitted_by: dict[str, str] = {}
        self._seniority: dict[str, int] = {}
        self._keys: dict[KeyId, DeviceKeys] = {}
        self._key_fact: dict[KeyId, MembershipFact] = {}
        self._device_rank: dict[str, int] = {}
        self._invitations: set[tuple[str, bytes]] = set()
        """Those that admitted somebody, each with the member who gave it out: nobody else can spend it."""
        self._superseded: set[KeyId] = set()
        """Also by a batch that is void: then the device was removed, and none of its keys counts."""
        self._entries: list[MembershipFact] = []
        """What let a member or a key in."""
        self._removed: set[str] = set()
        self._cuts: dict[str, tuple[LastBatch | None, ...]] = {}
        self._spared: frozenset[bytes] = frozenset()
        for fact in ordered:
            self._admit(fact)
        self._settle([r for f in ordered if (r := self._removal(f)) is not None])

    # -- pass 1: who came in, removals ignored ------------------------------------------------------------------

    def _admit(self, fact: MembershipFact) -> None:
        event = fact.event
        if isinstance(event, VaultFounded) and fact.origin.batch_id == self._root and not self._founder:
            self._founder, self._group, self._policy = event.founder, event.group, event.removal_policy
            self._enter(event.founder, event.founder, fact)
        elif isinstance(event, KeyAnnounced):
            founding = fact.origin.batch_id == self._root and event.keys.member == self._founder
            if founding or self._author(fact) == event.keys.member:
                self._add_key(event.keys, fact)
                self._supersede(event, fact)
        elif isinstance(event, MemberAdmitted):
            author = self._author(fact)
            if author is None or event.keys.member != event.member or event.member in self._admitted_by:
                return
            if (author, event.invitation) not in self._invitations:
                self._invitations.add((author, event.invitation))
                self._enter(event.member, author, fact)
                self._add_key(event.keys, fact)

    def _enter(self, did: str, by: str, fact: MembershipFact) -> None:
        self._admitted_by[did] = by
        self._seniority[did] = len(self._seniority)
        self._entries.append(fact)

    def _add_key(self, keys: DeviceKeys, fact: MembershipFact) -> None:
        key_id = key_id_of_device(keys)
        owner = next((k.member for k in self._keys.values() if k.device == keys.device), None)
        # A device that is known renews its keys itself: the member's other devices could lock it out.
        own = owner is None or (owner == keys.member and fact.origin.device == keys.device)
        if own and key_id not in self._keys:
            self._keys[key_id] = keys
            self._key_fact[key_id] = fact
            self._device_rank.setdefault(keys.device, len(self._device_rank))
            self._entries.append(fact)

    def _supersede(self, event: KeyAnnounced, fact: MembershipFact) -> None:
        """A device renews its own keys. Those of the member's other devices only a removal ends, by seniority."""
        old = KeyId(event.supersedes) if event.supersedes else None
        if old in self._keys and self._keys[old].device == event.keys.device == fact.origin.device:
            self._superseded.add(old)

    def _author(self, fact: MembershipFact) -> str | None:
        """Member DID behind the signature; None when the key is nobody's. Keys come in with or after their member."""
        keys = self._keys.get(KeyId(fact.key_id))
        return keys.member if keys else None

    # -- pass 2: removals ---------------------------------------------------------------------------------------

    def _removal(self, fact: MembershipFact) -> Removal | None:
        """What a fact removes, if its author may; the devices with their last batches that count."""
        event, author = fact.event, self._author(fact)
        if not isinstance(event, MemberRemoved | DeviceRemoved) or author is None:
            return None
        permitted = author != event.member and (self._policy == ANY_MEMBER or author == self._founder)
        devices = {k.device for k in self._keys.values() if k.member == event.member}
        if isinstance(event, DeviceRemoved):
            permitted = permitted or (author == event.member and event.device != fact.origin.device)
            devices &= {event.device}
        if not permitted:
            return None
        accepted = {a.device: a for a in event.accepted}
        whole = isinstance(event, MemberRemoved)
        rank = (self._seniority[author], self._device_rank[fact.origin.device], fact.origin.order)
        return Removal(
            rank=rank,
            member=event.member if whole else None,
            cuts={d: accepted.get(d) for d in sorted(devices)},
            stands_on=tuple(self._stands_on(fact)),
        )

    def _stands_on(self, fact: MembershipFact) -> Iterator[Origin]:
        """The fact's own batch, and those that let its author in, up to the founding one."""
        while fact.origin.batch_id != self._root:
            yield fact.origin
            fact = self._key_fact[KeyId(fact.key_id)]

    def _settle(self, removals: list[Removal]) -> None:
        standing, self._spared = settle_removals(removals, self._leads)
        for removal in standing:
            if removal.member is not None:
                self._removed.add(removal.member)
            for device, cut in removal.cuts.items():
                self._cuts[device] = (*self._cuts.get(device, ()), cut)

    def _is_void(self, fact: MembershipFact) -> bool:
        at = fact.origin
        return _is_cut(self._cuts, self._spared, at.device, at.batch_id, self._leads)

    def ghosts(self) -> set[tuple[int, bytes, int]]:
        """Facts in void batches that let somebody in."""
        return {f.origin.order for f in self._entries if f.origin.batch_id != self._root and self._is_void(f)}

    def result(self) -> Membership:
        """The verdict."""
        devices: dict[str, set[str]] = {did: set() for did in self._admitted_by}
        for keys in self._keys.values():
            devices[keys.member].add(keys.device)
        members = {
            did: Member(
                did=did,
                seniority=self._seniority[did],
                admitted_by=by,
                devices=tuple(sorted(devices[did])),
                lost=tuple(sorted(devices[did] & self._cuts.keys())),
                removed=did in self._removed,
            )
            for did, by in self._admitted_by.items()
        }
        return Membership(
            group=self._group,
            founder=self._founder,
            policy=self._policy,
            members=members,
            keys=dict(self._keys),
            superseded=frozenset(self._superseded),
            cuts=dict(self._cuts),
            spared=self._spared,
        )


def _is_cut(
    cuts: Mapping[str, tuple[LastBatch | None, ...]],
    spared: frozenset[bytes],
    device: str,
    batch_id: bytes,
    leads: Leads,
) -> bool:
    """Whether a batch lies beyond what any standing removal of its device accepts."""
    beyond = any(is_beyond(cut, batch_id, leads) for cut in cuts.get(device, ()))
    return beyond and batch_id not in spared
