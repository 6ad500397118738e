"""Group commit: everything that waits goes into one batch = one block = one signature.

`append` hands its events to one writer thread and waits. The thread checks conditions, takes positions and
stores the signed batch in one durable transaction, then creates the block, then lets readers see the events
and answers everyone. A crash in between loses nothing: batches without a block are sent again at start, byte
for byte, after the reconciler has found those whose block exists. Spec: design.md 3.7, ADR 0007.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import apsw
import msgspec
from eventsourcing.dcb.api import DCBAppendCondition, DCBEvent
from eventsourcing.persistence import IntegrityError

from walytis_vault.adapters.walytis.appends import PendingAppend, event_matches, fail_all
from walytis_vault.adapters.walytis.judge import Accepted
from walytis_vault.adapters.walytis.ledger import Ledger
from walytis_vault.adapters.walytis.log_rows import EventRow
from walytis_vault.adapters.walytis.receipts import Appended, Receipt, find_reply, keep_reply
from walytis_vault.domain.batch import BATCH_VERSION, BatchBody, EventRecord, SignedBatch, seal_batch
from walytis_vault.domain.errors import (
    ConflictError,
    MisuseError,
    NotYetAvailableError,
    PermissionRefusedError,
    StorageError,
    TransportError,
    VaultError,
)
from walytis_vault.domain.events import MEMBERSHIP_TOPICS, PRODUCT_EVENTS, EventTable, MemberRemoved, to_dcb
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.limits import LIMITS, Limits
from walytis_vault.domain.membership import Membership
from walytis_vault.domain.ports import BlockRef, Chain, Clock, Signer

EVENT_OVERHEAD: Final = 64
"""Bytes that one event may need in a batch besides its topic and payload."""
IDLE_S: Final = 0.05
"""After this time without work the marks of finished blocks are written down."""
LINGER_S: Final = 0.002
"""How long a batch waits for more when the last one had several appends. A lone append never waits."""
RETRY_S: Final = (0.05, 0.2, 1.0, 5.0)
"""Waits between attempts to create a block; the last one repeats."""


class LogWriter:
    """Owns the only thread that makes batches. `append` may be called from any thread."""

    def __init__(
        self,
        ledger: Ledger,
        chain: Chain,
        signer: Signer,
        table: EventTable,
        *,
        device: str,
        clock: Clock,
        limits: Limits = LIMITS,
        local_begin: Callable[[], None] = lambda: None,
        local_block: Callable[[BlockRef], None] = lambda _: None,
    ) -> None:
        """Prepare; `start` runs.

        Args:
            device: the DID under which this node's batches are numbered.
            local_begin, local_block: told before a block of our own is made and when it exists, so that the
                reconciler need not look at it.
        """
        self._local_begin = local_begin
        self._local_block = local_block
        self._ledger = ledger
        self._index = ledger.index
        self._chain = chain
        self._signer = signer
        self._table = table
        self._device = device
        self._clock = clock
        self._limits = limits
        self._queue: deque[PendingAppend] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._crowd = 0
        """How many appends waited when the last batch was made."""
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    def start(self) -> None:
        """Send pending batches again, then serve appends. Call after the reconciler's first catch-up."""
        self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Finish the batch under way and stop; what waits behind it is told. Bounded by `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        with self._changed:
            waiting, self._queue = list(self._queue), deque()
        for append in waiting:
            append.answer(TransportError("the node is closing: repeat the request when it is back"))

    @property
    def waiting(self) -> int:
        """How many appends wait for the next batch."""
        return len(self._queue)

    def append(
        self,
        events: Sequence[DCBEvent],
        condition: DCBAppendCondition | None = None,
        *,
        receipt: Receipt | None = None,
        timeout: float = 30.0,
    ) -> Appended:
        """Append events as one unit; return when their block exists and is durable.

        Raises:
            IntegrityError: the condition failed (eventsourcing's own, as its interface demands).
            ConflictError: the receipt's request id was used for another body.
            MisuseError: unknown event types, or more than fits into one batch.
            TimedOutError: not on the chain within `timeout` seconds; it may still get there.
            StorageError, StorageFullError, PermissionRefusedError: nothing was recorded.
        """
        append = self._prepare(events, condition, receipt)
        with self._changed:
            if self._closing:
                raise TransportError("the node is closing: repeat the request when it is back")
            self._queue.append(append)
            self._changed.notify()
        return append.wait(timeout)

    def _prepare(
        self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None, receipt: Receipt | None
    ) -> PendingAppend:
        if not events:
            raise MisuseError("append needs at least one event")
        records = [EventRecord(*self._table.pack(e)) for e in events]
        rows = [EventRow(r.topic, *self._table.unpack(r.topic, r.payload)) for r in records]
        size = sum(len(r.topic) + len(r.payload) + EVENT_OVERHEAD for r in records)
        if size > self._room() or len(records) > self._limits.batch_events:
            raise MisuseError(f"{len(records)} events of {size} bytes do not fit into one batch: append them in parts")
        return PendingAppend(records, rows, condition, receipt, size)

    def _room(self) -> int:
        """Bytes for events in one batch, after the largest possible head of it."""
        return self._limits.batch_body - 34 * self._limits.batch_heads - self._limits.did - 512

    # -- the writer thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        for batch_id, envelope in self._index.pending():
            if not self._publish(batch_id, envelope):
                return
        while group := self._take():
            try:
                self._commit(group)
            except VaultError as e:
                fail_all(group, e)
            except Exception as e:  # the thread must live, and the callers must hear of it
                fail_all(group, StorageError(f"the log could not be written: {type(e).__name__}: {e}"))
        if self._index.has_marks:
            with contextlib.suppress(VaultError):  # a mark that is lost is found again on the chain
                self._flush_marks()

    def _take(self) -> list[PendingAppend]:
        """Wait for work; return all that fits into one batch, oldest first. Empty when closing."""
        with self._changed:
            waited = self._changed.wait_for(
                lambda: self._queue or self._closing, IDLE_S if self._index.has_marks else None
            )
        if not waited:
            self._flush_marks()
            return self._take()
        with self._changed:
            if self._crowd > 1 and len(self._queue) < self._crowd:
                # Those that were answered just now are about to come again: one block for all of them.
                self._changed.wait_for(lambda: len(self._queue) >= self._crowd or self._closing, LINGER_S)
            if self._closing:
                return []
            self._crowd = len(self._queue)
            group: list[PendingAppend] = []
            size = count = 0
            while self._queue:
                append = self._queue[0]
                if group and (
                    size + append.size > self._room() or count + len(append.records) > self._limits.batch_events
                ):
                    break
                group.append(self._queue.popleft())
                size += append.size
                count += len(append.records)
            return group

    def _commit(self, group: list[PendingAppend]) -> None:
        """One transaction, one block, for everyone in the group whose condition holds."""
        answers: list[tuple[PendingAppend, Appended | Exception]] = []
        batch: SignedBatch | None = None
        fault("append.before_index")
        try:
            with self._index.database.transaction() as connection:
                marks = self._index.flush_marks(connection)
                staged = self._stage(connection, group, answers)
                if staged:
                    batch = self._record(connection, staged, answers)
        except BaseException:
            self._ledger.forget_current()
            if batch is not None:
                self._index.take_back(batch.batch_id)
            raise
        self._index.forget_marks(marks)
        fault("append.after_index")
        last = max((a.last for _, a in answers if isinstance(a, Appended)), default=0)
        if batch is not None and not self._publish(batch.batch_id, batch.envelope(), last):
            raise TransportError("the node closed before the block was created: the events are sent at its next start")
        for append, answer in answers:
            append.answer(answer)

    def _stage(
        self,
        connection: apsw.Connection,
        group: list[PendingAppend],
        answers: list[tuple[PendingAppend, Appended | Exception]],
    ) -> list[PendingAppend]:
        """Those of the group that take effect: new request ids whose conditions hold, one after the other."""
        staged: list[PendingAppend] = []
        (position,) = next(connection.execute("SELECT coalesce(max(position), 0) FROM events"))
        ids: set[tuple[str, bytes]] = set()
        for append in group:
            receipt, condition = append.receipt, append.condition
            if receipt is not None:
                if (receipt.client, receipt.request_id) in ids:
                    self._put_back(append)  # its twin is in this very batch: the next one finds the reply
                    continue
                try:
                    kept = find_reply(connection, receipt.client, receipt.request_id, receipt.digest)
                except ConflictError as e:
                    answers.append((append, e))
                    continue
                if kept is not None:
                    answers.append((append, kept))
                    continue
            if condition is not None and self._violated(connection, condition, staged, position):
                answers.append((append, IntegrityError(condition)))
                continue
            if receipt is not None:
                ids.add((receipt.client, receipt.request_id))
            staged.append(append)
        return staged

    def _put_back(self, append: PendingAppend) -> None:
        with self._changed:
            self._queue.appendleft(append)

    def _violated(
        self, connection: apsw.Connection, condition: DCBAppendCondition, staged: list[PendingAppend], position: int
    ) -> bool:
        """Whether an event that is recorded, or comes before this one in the same batch, fails the condition."""
        after = condition.after or 0
        if self._index.matches(connection, condition.fail_if_events_match, after):
            return True
        for append in staged:
            for row in append.rows:
                position += 1
                if position > after and event_matches(condition.fail_if_events_match, row):
                    return True
        return False

    def _record(
        self,
        connection: apsw.Connection,
        staged: list[PendingAppend],
        answers: list[tuple[PendingAppend, Appended | Exception]],
    ) -> SignedBatch:
        """Sign the batch, store it with the replies, and prepare the answers."""
        rows = [row for append in staged for row in append.rows]
        batch, verdict = self._seal(connection, [r for append in staged for r in append.records], rows)
        first, _ = self._ledger.record(connection, batch, verdict, block=None)
        now_ms = batch.body.time_ms
        for append in staged:
            last = first + len(append.rows) - 1
            reply = None
            if append.receipt is not None:
                reply = keep_reply(connection, append.receipt, first, last, now_ms)
            answers.append((append, Appended(first=first, last=last, reply=reply)))
            first = last + 1
        return batch

    def _seal(
        self, connection: apsw.Connection, records: list[EventRecord], rows: list[EventRow]
    ) -> tuple[SignedBatch, Accepted]:
        """Make the next batch of this device, with all heads that it knows as causes."""
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
        if any(r.topic == MemberRemoved.TOPIC for r in rows):
            records, rows = self._cut_removals(connection, parent_ids, membership, records)
        body = BatchBody(
            version=BATCH_VERSION,
            vault_id=self._chain.chain_id,
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
            if record.topic == MemberRemoved.TOPIC:
                event = PRODUCT_EVENTS.decode(record.topic, record.payload)
                assert isinstance(event, MemberRemoved)
                victim = membership.members.get(event.member)
                devices = frozenset(victim.devices if victim else ())
                accepted = self._ledger.judge.last_batches(connection, parent_ids, devices)
                packed = self._table.pack(to_dcb(msgspec.structs.replace(event, accepted=accepted)))
                cut.append(EventRecord(*packed))
            else:
                cut.append(record)
        return cut, [EventRow(r.topic, *self._table.unpack(r.topic, r.payload)) for r in cut]

    def _publish(self, batch_id: BatchId, envelope: bytes, last: int | None = None) -> bool:
        """Create the block, as often as it takes; False when the node closes first."""
        self._local_begin()
        for attempt in itertools.count():
            try:
                block = self._chain.append(envelope)
                break
            except TransportError:
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, RETRY_S[min(attempt, len(RETRY_S) - 1)]):
                        return False
        fault("append.after_block")
        self._index.on_chain(batch_id, block.key)
        self._local_block(block)
        self._index.publish_horizon(last)
        return True

    def _flush_marks(self) -> None:
        """Write down which blocks hold our batches, when nobody waits for anything better."""
        with self._index.database.transaction() as connection:
            marks = self._index.flush_marks(connection)
        self._index.forget_marks(marks)
        fault("append.after_mark")
