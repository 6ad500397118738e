"""Decides whether a batch enters the log. It believes nothing but signatures and its own index.

Order: vault, known already, parents, numbering, key in the causal past, both signatures, and only then the
events' contents. A refusal is an `UntrustedInputError` whose message is the reason that the audit shows.
Rules: design.md 3.2-3.5, docs/wire-format.md; the membership fold is `domain.membership`.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import apsw
import msgspec

from walytis_vault.adapters.walytis.lineage import Lineage
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.log_rows import BatchRow, EventRow
from walytis_vault.domain import claims
from walytis_vault.domain.batch import BATCH_VERSION, SignedBatch, decode_batch, key_id_of_device
from walytis_vault.domain.errors import NewerVersionError, UntrustedInputError
from walytis_vault.domain.events import (
    MEMBERSHIP_TOPICS,
    PRODUCT_EVENTS,
    REMOVAL_POLICIES,
    REMOVAL_TOPICS,
    ContentPublished,
    DeviceKeys,
    DeviceRemoved,
    EventTable,
    ForgettingProposed,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
    Origin,
    VaultFounded,
)
from walytis_vault.domain.ids import BatchId, KeyId
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.membership import Membership, MembershipFact, fold_membership
from walytis_vault.domain.ports import Verifier

MEMBERSHIPS_CACHED: Final = 64
ROOT_DEPTH: Final = 1


class Place(msgspec.Struct, frozen=True):
    """Where a batch stands in the causal order."""

    context: int
    depth: int


class Accepted(msgspec.Struct, frozen=True):
    """A batch that may enter the log."""

    place: Place
    author: str
    """Member DID."""
    events: list[EventRow]
    membership: bool


class Waiting(msgspec.Struct, frozen=True):
    """A batch whose cause is not here yet."""

    missing: BatchId


class Judge:
    """Stateless but for caches; every method runs inside the transaction that its connection belongs to."""

    def __init__(self, index: LogIndex, verifier: Verifier, table: EventTable, vault_id: str, root: BatchId) -> None:
        """`root` is the id of the founding batch, known from `init` or from the invitation."""
        self._index = index
        self._verifier = verifier
        self._table = table
        self._vault_id = vault_id
        self.root = root
        self._memberships: OrderedDict[int, Membership] = OrderedDict()

    def understands(self) -> bytes:
        """Changes when a new version reads batches that this one cannot."""
        topics = sorted(getattr(self._table, "topics", ()))
        return hashlib.sha256(repr((BATCH_VERSION, topics, REMOVAL_POLICIES)).encode()).digest()

    def judge(self, connection: apsw.Connection, batch: SignedBatch) -> Accepted | Waiting:
        """Judge a batch that is not in the index yet.

        Raises:
            UntrustedInputError: it never enters the log; the message says why.
        """
        body = batch.body
        if body.vault_id != self._vault_id:
            raise UntrustedInputError("batch belongs to another vault")
        if batch.batch_id == self.root:
            return self._judge_root(connection, batch)
        if not body.parents():
            raise UntrustedInputError("batch without a cause: only the founding batch has none")
        parents = []
        for parent_id in body.parents():
            parent = self._index.batch(connection, parent_id)
            if parent is None:
                return Waiting(parent_id)
            parents.append(parent)
        if body.previous and (parents[0].device, parents[0].number) != (body.author, body.number - 1):
            raise UntrustedInputError("batch number does not follow the device's previous batch")
        place = self.place(connection, parents)
        membership = self.membership(connection, place.context)
        key_id = KeyId(body.key_id)
        if refusal := membership.refusal(key_id, body.author):
            raise UntrustedInputError(refusal)
        keys = membership.keys[key_id]
        self._check_signature(batch, keys.ed25519, keys.ml_dsa_65)
        events = self._unpack(batch)
        is_membership = any(e.topic in MEMBERSHIP_TOPICS for e in events)
        self._check_ids(events, keys.member)
        if is_membership:
            self._check_membership_events(connection, events, parents, membership, keys)
        return Accepted(place, keys.member, events, is_membership)

    def place(self, connection: apsw.Connection, parents: Sequence[BatchRow]) -> Place:
        """Causal context and depth of a batch with these parents (at least one)."""
        depth = 1 + max(p.depth for p in parents)
        contexts = {p.context for p in parents}
        if len(contexts) == 1 and not any(p.membership for p in parents):
            return Place(contexts.pop(), depth)
        known: set[bytes] = {p.batch_id for p in parents if p.membership}
        union = known.union(*(self._index.contexts.members(connection, c) for c in contexts))
        return Place(self._index.contexts.number(connection, union, contexts), depth)

    def membership(self, connection: apsw.Connection, context: int) -> Membership:
        """The verdict on members and keys for one causal context."""
        found = self._memberships.get(context)
        if found is None:
            facts = self.facts(connection, self._index.contexts.members(connection, context))
            leads = Lineage(self._index, connection).leads
            found = self._memberships[context] = fold_membership(facts, self.root, leads)
            if len(self._memberships) > MEMBERSHIPS_CACHED:
                self._memberships.popitem(last=False)
        return found

    def forget(self) -> None:
        """A transaction was rolled back: the numbers of the contexts that it made are given again, to others."""
        self._memberships.clear()
        self._index.contexts.forget()

    def facts(self, connection: apsw.Connection, batch_ids: frozenset[bytes] | None = None) -> list[MembershipFact]:
        """Membership events of some batches, or of all in the index (void ones included)."""
        sql = (
            "SELECT e.topic, e.data, e.idx, b.batch_id, b.depth, b.author, b.device, b.number, b.time_ms, b.key_id"
            " FROM batches b JOIN events e ON e.batch = b.seq WHERE b.membership = 1"
        )
        facts = []
        for topic, data, idx, batch_id, depth, author, device, number, time_ms, key_id in connection.execute(sql):
            if topic in MEMBERSHIP_TOPICS and (batch_ids is None or batch_id in batch_ids):
                origin = Origin(
                    batch_id=batch_id, index=idx, depth=depth, author=author, device=device, number=number,
                    time_ms=time_ms,
                )  # fmt: skip
                facts.append(MembershipFact(event=PRODUCT_EVENTS.decode(topic, data), origin=origin, key_id=key_id))
        return facts

    def last_batches(
        self, connection: apsw.Connection, parents: Sequence[BatchId], devices: frozenset[str]
    ) -> tuple[LastBatch, ...]:
        """The last batch of each device in the causal past of a batch with these parents, sorted by device."""
        front: list[tuple[int, bytes]] = []
        seen: set[bytes] = set()
        found: dict[str, LastBatch] = {}
        # Looking for what a silent device wrote would walk the whole log.
        devices = frozenset(d for d in devices if self._index.last_batch_of(connection, d))

        def visit(batch_id: bytes) -> None:
            if batch_id not in seen and (row := self._index.batch(connection, batch_id)):
                seen.add(batch_id)
                heapq.heappush(front, (-row.depth, batch_id))

        for parent in parents:
            visit(parent)
        while front and len(found) < len(devices):
            _, batch_id = heapq.heappop(front)
            ((device, number, envelope),) = connection.execute(
                "SELECT device, number, envelope FROM batches WHERE batch_id = ?", (batch_id,)
            )
            # Depth grows along a device's chain, so the deepest of its batches is its last.
            if device in devices and device not in found:
                found[device] = LastBatch(device=device, number=number, batch_id=batch_id)
            for parent in decode_batch(envelope).body.parents():
                visit(parent)
        return tuple(found[d] for d in sorted(found))

    def _judge_root(self, connection: apsw.Connection, batch: SignedBatch) -> Accepted:
        """The founding batch vouches for itself: its id is pinned."""
        decoded = [PRODUCT_EVENTS.decode(e.topic, e.payload) for e in batch.body.events[:2]]
        founded, announced = (*decoded, None, None)[:2]
        if not isinstance(founded, VaultFounded) or not isinstance(announced, KeyAnnounced):
            raise UntrustedInputError("founding batch does not begin with VaultFounded and KeyAnnounced")
        if founded.removal_policy not in REMOVAL_POLICIES:
            raise NewerVersionError("the vault's rule for removals is not known: it needs a newer walytis-vault")
        keys = announced.keys
        if key_id_of_device(keys) != batch.body.key_id or keys.device != batch.body.author:
            raise UntrustedInputError("founding batch is not signed by the key that it announces")
        if not keys.device == keys.member == founded.founder:
            raise UntrustedInputError("founding batch announces the keys of somebody other than the founder")
        self._check_signature(batch, keys.ed25519, keys.ml_dsa_65)
        self._check_first_key(keys)
        context = self._index.contexts.number(connection, ())
        return Accepted(Place(context, ROOT_DEPTH), keys.member, self._unpack(batch), membership=True)

    def is_signed(self, batch: SignedBatch, ed25519: bytes, ml_dsa_65: bytes) -> bool:
        """Whether both signatures of a batch are those of this key: the one with the batch's key id."""
        return self._verifier.verify(
            ed25519=ed25519, ml_dsa_65=ml_dsa_65, signature=batch.signature, message=batch.signed_bytes()
        )

    def _check_signature(self, batch: SignedBatch, ed25519: bytes, ml_dsa_65: bytes) -> None:
        if not self.is_signed(batch, ed25519, ml_dsa_65):
            raise UntrustedInputError("signature does not verify")

    def _unpack(self, batch: SignedBatch) -> list[EventRow]:
        return [EventRow(e.topic, *self._table.unpack(e.topic, e.payload)) for e in batch.body.events]

    def _check_membership_events(
        self,
        connection: apsw.Connection,
        events: Sequence[EventRow],
        parents: Sequence[BatchRow],
        membership: Membership,
        keys: DeviceKeys,
    ) -> None:
        """Refuse what the author cannot claim, given the batch's causal past."""
        for row in events:
            if row.topic == VaultFounded.TOPIC:
                raise UntrustedInputError("a vault is founded once")
            if row.topic == KeyAnnounced.TOPIC:
                event = PRODUCT_EVENTS.decode(row.topic, row.data)
                assert isinstance(event, KeyAnnounced)
                self._check_announcement(event.keys, membership, keys)
            if row.topic == MemberAdmitted.TOPIC:
                admission = PRODUCT_EVENTS.decode(row.topic, row.data)
                assert isinstance(admission, MemberAdmitted)
                if not admission.member == admission.keys.member == admission.keys.device:
                    raise UntrustedInputError("admission under a name that is not the new member's first device's")
                if len(membership.active()) >= LIMITS.members:
                    raise UntrustedInputError(f"a vault has at most {LIMITS.members} members")
                self._check_first_key(admission.keys)
            if row.topic in REMOVAL_TOPICS:
                self._check_removal(connection, row, [p.batch_id for p in parents], membership, keys)

    def _check_announcement(self, announced: DeviceKeys, membership: Membership, author: DeviceKeys) -> None:
        """Keys of a new device of the author's member, or new ones of the author's own device."""
        if announced.member != author.member:
            raise UntrustedInputError("key announced for another member")
        owner = membership.owner(announced.device)
        if owner is not None and announced.device != author.device:
            raise UntrustedInputError("key announced for another device that has its own")
        if owner is not None:
            self._check_possession(announced)
            return
        if len(membership.members[author.member].devices) >= LIMITS.devices:
            raise UntrustedInputError(f"a member has at most {LIMITS.devices} devices")
        self._check_first_key(announced)

    def _check_first_key(self, keys: DeviceKeys) -> None:
        if not claims.is_first_key(keys):
            raise UntrustedInputError("the device's name does not end with its first key")
        self._check_possession(keys)

    def _check_possession(self, keys: DeviceKeys) -> None:
        if not claims.proves_possession(keys, self._vault_id, self._verifier):
            raise UntrustedInputError("keys announced without the signature of their owner")

    def _check_ids(self, events: Sequence[EventRow], author: str) -> None:
        """Refuse ids that are not the author's to give: somebody else's content or ballot would be taken over."""
        for row in events:
            if row.topic in (ContentPublished.TOPIC, ForgettingProposed.TOPIC):
                event = PRODUCT_EVENTS.decode(row.topic, row.data)
                if isinstance(event, ContentPublished):
                    claims.check_content(self._vault_id, author, event)
                elif isinstance(event, ForgettingProposed):
                    claims.check_ballot(self._vault_id, author, event)

    def _check_removal(
        self,
        connection: apsw.Connection,
        row: EventRow,
        parents: Sequence[BatchId],
        membership: Membership,
        keys: DeviceKeys,
    ) -> None:
        event = PRODUCT_EVENTS.decode(row.topic, row.data)
        assert isinstance(event, MemberRemoved | DeviceRemoved)
        victim = membership.members.get(event.member)
        if victim is None or victim.removed:
            raise UntrustedInputError("removal of somebody who is not a member")
        if isinstance(event, DeviceRemoved):
            if event.device not in victim.devices or event.device in victim.lost or event.device == keys.device:
                raise UntrustedInputError("removal of what is no other device of that member")
            permitted = event.member == keys.member or membership.may_remove(keys.member, event.member)
        else:
            permitted = membership.may_remove(keys.member, event.member)
        if not permitted:
            raise UntrustedInputError("removal by somebody whom the founder's policy does not let remove others")
        true_past = self.last_batches(connection, parents, removed_devices(event, membership))
        if tuple(sorted(event.accepted, key=lambda a: a.device)) != true_past:
            raise UntrustedInputError("removal does not name the victim's last batches that its author had seen")


def removed_devices(event: MemberRemoved | DeviceRemoved, membership: Membership) -> frozenset[str]:
    """The devices that a removal ends, given its causal past."""
    if isinstance(event, DeviceRemoved):
        return frozenset({event.device})
    victim = membership.members.get(event.member)
    return frozenset(victim.devices if victim else ())
