"""Make this device's next batch: causes, place in the causal order, membership, signature.

It reads the index inside the caller's transaction and writes nothing. A device that may not write is refused
here, before anything is signed. Spec: design.md 3.3-3.5, docs/wire-format.md "Batch".
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw
import msgspec

from walytis_vault.adapters.walytis.judge import Accepted, removed_devices
from walytis_vault.adapters.walytis.ledger import Ledger
from walytis_vault.adapters.walytis.log_rows import EventRow
from walytis_vault.domain.batch import BATCH_VERSION, BatchBody, EventRecord, SignedBatch, seal_batch
from walytis_vault.domain.errors import NotYetAvailableError, PermissionRefusedError
from walytis_vault.domain.events import (
    MEMBERSHIP_TOPICS,
    PRODUCT_EVENTS,
    REMOVAL_TOPICS,
    DeviceRemoved,
    EventTable,
    MemberRemoved,
    to_dcb,
)
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.limits import Limits
from walytis_vault.domain.membership import Membership
from walytis_vault.domain.ports import Clock, Signer


class BatchSealer:
    """Numbers and signs the batches of one device. Only one thread at a time may use it: the one that has the turn."""

    def __init__(
        self,
        ledger: Ledger,
        signer: Signer,
        table: EventTable,
        *,
        vault_id: str,
        device: str,
        clock: Clock,
        limits: Limits,
    ) -> None:
        """`device` is the DID under which the batches are numbered, `vault_id` the chain that they belong to."""
        self._ledger = ledger
        self._index = ledger.index
        self._signer = signer
        self._table = table
        self._vault_id = vault_id
        self._device = device
        self._clock = clock
        self._limits = limits

    def room(self) -> int:
        """Bytes for events in one batch, after the largest possible head of it."""
        return self._limits.batch_body - 34 * self._limits.batch_heads - self._limits.did - 512

    def seal(
        self, connection: apsw.Connection, records: list[EventRecord], rows: list[EventRow]
    ) -> tuple[SignedBatch, Accepted]:
        """Make the next batch of this device, with all heads that it knows as causes.

        Raises:
            NotYetAvailableError: the founding batch is not here yet.
            PermissionRefusedError: this device is no member any more, or its key was superseded.
        """
        previous = self._index.last_batch_of(connection, self._device)
        heads = self._index.heads(connection, self._limits.batch_heads)
        others = sorted(h for h in heads if previous is None or h != previous.batch_id)
        parent_ids = ([previous.batch_id] if previous else []) + others
        parents = [p for i in parent_ids if (p := self._index.batch(connection, i))]
        if not parents:
            raise NotYetAvailableError("the founding batch is not here yet: wait until the log has caught up")
        place = self._ledger.judge.place(connection, parents)
        membership = self._ledger.judge.membership(connection, place.context)
        if refusal := membership.refusal(self._signer.key_id, self._device):
            raise PermissionRefusedError(f"this node may not write to the vault any more: {refusal}")
        if any(r.topic in REMOVAL_TOPICS for r in rows):
            records, rows = self._cut_removals(connection, parent_ids, membership, records)
        body = BatchBody(
            version=BATCH_VERSION,
            vault_id=self._vault_id,
            author=self._device,
            key_id=self._signer.key_id,
            number=previous.number + 1 if previous else 1,
            previous=previous.batch_id if previous else b"",
            heads=tuple(others),
            time_ms=self._clock.wall_ms(),
            events=tuple(records),
        )
        author = membership.keys[self._signer.key_id].member
        is_membership = any(r.topic in MEMBERSHIP_TOPICS for r in rows)
        return seal_batch(body, self._signer), Accepted(place, author, rows, is_membership)

    def _cut_removals(
        self,
        connection: apsw.Connection,
        parent_ids: Sequence[BatchId],
        membership: Membership,
        records: Sequence[EventRecord],
    ) -> tuple[list[EventRecord], list[EventRow]]:
        """Let each removal name the victim's last batches in this batch's own past, which nobody else can know."""
        cut: list[EventRecord] = []
        for record in records:
            if record.topic in REMOVAL_TOPICS:
                event = PRODUCT_EVENTS.decode(record.topic, record.payload)
                assert isinstance(event, MemberRemoved | DeviceRemoved)
                devices = removed_devices(event, membership)
                accepted = self._ledger.judge.last_batches(connection, parent_ids, devices)
                packed = self._table.pack(to_dcb(msgspec.structs.replace(event, accepted=accepted)))
                cut.append(EventRecord(*packed))
            else:
                cut.append(record)
        return cut, [EventRow(r.topic, *self._table.unpack(r.topic, r.payload)) for r in cut]
