"""Group commit: everything that waits goes into one batch = one block = one signature.

`append` hands its events over and waits. Whoever has the turn checks conditions, takes positions and stores the
signed batch in one durable transaction, then creates the block, then lets readers see the events and answers
everyone. That is the writer thread, or a caller that finds nobody else there: waking a thread and being woken
costs as much as a block. A crash in between loses nothing: batches without a block are sent again at start, byte
for byte, after the reconciler has found those whose block exists. Spec: design.md 3.7, ADR 0007.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import apsw
from eventsourcing.dcb.api import DCBAppendCondition, DCBEvent

from walytis_vault.adapters.walytis.appends import Answers, PendingAppend, answer_all, fail_all, recorded, take_group
from walytis_vault.adapters.walytis.ledger import Ledger
from walytis_vault.adapters.walytis.log_rows import EventRow
from walytis_vault.adapters.walytis.receipts import Appended, Receipt, drop_expired, keep_reply
from walytis_vault.adapters.walytis.sealer import BatchSealer
from walytis_vault.adapters.walytis.staging import stage
from walytis_vault.domain.batch import EventRecord, SignedBatch
from walytis_vault.domain.errors import MisuseError, StorageError, TransportError, VaultError
from walytis_vault.domain.events import EventTable
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.limits import LIMITS, Limits
from walytis_vault.domain.ports import BlockRef, Chain, Clock, Signer

EVENT_OVERHEAD: Final = 64
"""Bytes that one event may need in a batch besides its topic and payload."""
IDLE_S: Final = 0.05
"""After this time without work the marks of finished blocks are written down."""
LINGER_S: Final = 0.005
"""How long a batch waits at most for those whom the last one answered. A lone append never waits."""
RETRY_S: Final = (0.05, 0.2, 1.0, 5.0)
"""Waits between attempts to create a block; the last one repeats."""
CLOSING: Final = "the node is closing: repeat the request when it is back"


class LogWriter:
    """Makes the batches, one at a time. `append` may be called from any thread.

    One at a time has *the turn*: the writer thread, or (`_led`) a caller that came when there was nothing to do.
    What it has recorded and not yet put on the chain is `_unfinished`; if it fails there, the thread goes on.
    """

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
        self._table = table
        self._limits = limits
        self._clock = clock
        self._sealer = BatchSealer(
            ledger, signer, table, vault_id=chain.chain_id, device=device, clock=clock, limits=limits
        )
        self._queue: deque[PendingAppend] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._crowd = 0
        """How many appends are expected to come: those that were answered last, and those that came meanwhile."""
        self._busy_s = 0.0
        """How long the last batch took."""
        self._wanted = 1
        """How many appends the writer waits for: fewer need not wake it."""
        self._idle = False
        """The thread has nothing to do: a caller may take the turn."""
        self._led = False
        """A caller has the turn."""
        self._timed = False
        """The thread looks again by itself, for marks to write down."""
        self._served = 0
        """How many groups were served: whether the log is in use."""
        self._unfinished: tuple[SignedBatch, Answers] | None = None
        self.last_error: str | None = None
        """Why no block could be made last; None when the last one was."""
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
            _, unsent = self._unfinished or (None, [])
        fail_all(waiting, TransportError(CLOSING))
        error = TransportError("the node closed before the block was created: the events are sent at its next start")
        fail_all((append for append, _ in unsent), error)

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
            TransportError: recorded, and its block is still to come, or the node is closing.
            StorageError, StorageFullError, PermissionRefusedError: nothing was recorded.
        """
        append = self._prepare(events, condition, receipt)
        self._enqueue([append])
        return append.wait(timeout)

    def append_all(
        self, appends: Sequence[tuple[Sequence[DCBEvent], Receipt | None]], *, timeout: float = 30.0
    ) -> list[Appended | Exception]:
        """Append many units that have no condition with one wait. For each, what `append` returns or raises."""
        prepared: list[PendingAppend | Exception] = []
        for events, receipt in appends:
            try:
                prepared.append(self._prepare(events, None, receipt))
            except VaultError as e:
                prepared.append(e)
        self._enqueue([a for a in prepared if isinstance(a, PendingAppend)])
        until = time.monotonic() + timeout
        return [a.outcome(max(0.0, until - time.monotonic())) if isinstance(a, PendingAppend) else a for a in prepared]

    def _enqueue(self, appends: Sequence[PendingAppend]) -> None:
        with self._changed:
            if self._closing:
                raise TransportError(CLOSING)
            self._queue.extend(appends)
            lead = self._idle and not self._led and not self._unfinished and self._crowd <= 1 == len(self._queue)
            if lead:
                self._led = True
            elif len(self._queue) >= self._wanted:
                self._changed.notify()
        if lead:
            self._lead()

    def _prepare(
        self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None, receipt: Receipt | None
    ) -> PendingAppend:
        if not events:
            raise MisuseError("append needs at least one event")
        records = [EventRecord(*self._table.pack(e)) for e in events]
        rows = [EventRow(r.topic, *self._table.unpack(r.topic, r.payload)) for r in records]
        size = sum(len(r.topic) + len(r.payload) + EVENT_OVERHEAD for r in records)
        if size > self._sealer.room() or len(records) > self._limits.batch_events:
            raise MisuseError(f"{len(records)} events of {size} bytes do not fit into one batch: append them in parts")
        return PendingAppend(records, rows, condition, receipt, size)

    # -- the turn -----------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        """Make one batch on the caller's own thread; leave the rest, and what takes patience, to the writer thread."""
        try:
            with self._changed:
                group = self._group()
            self._serve(group, patient=False)
        finally:
            with self._changed:
                self._led = False
                if self._queue or self._unfinished or self._closing or (self._index.has_marks and not self._timed):
                    self._changed.notify_all()

    def _run(self) -> None:
        left: list[tuple[BatchId, bytes]] | None = None
        while not self._closing and (left is None or left):
            try:
                left = self._index.pending() if left is None else left
                if left and self._publish(*left[0]):
                    del left[0]
            except Exception as e:
                self._failed(e)
        while self._wait():
            try:
                if self._unfinished:
                    self._finish(patient=True)
                elif group := self._take():
                    self._serve(group, patient=True)
                else:
                    self._flush_marks()
            except Exception as e:
                self._failed(e)
        if self._index.has_marks:
            self._flush_marks()

    def _failed(self, error: Exception) -> None:
        """The thread must live, and what is recorded is tried again later: say why it waits."""
        self.last_error = str(error) if isinstance(error, VaultError) else f"{type(error).__name__}: {error}"
        self._pause(RETRY_S[-1], until_asked=False)

    def _wait(self) -> bool:
        """Wait for something to do and the turn to do it; False when closing."""
        with self._changed:
            self._idle = True
            while not self._closing and (self._led or not (self._queue or self._unfinished)):
                self._timed, served = self._index.has_marks, self._served
                notified = self._changed.wait(IDLE_S if self._timed else None)
                if not notified and not self._led and served == self._served:
                    break
            self._idle = self._timed = False
            if self._closing:
                self._changed.wait_for(lambda: not self._led)
            return not self._closing

    def _take(self) -> list[PendingAppend]:
        """All that fits into one batch, oldest first; those that are about to come included."""
        with self._changed:
            if self._queue and self._crowd > 1 and len(self._queue) < self._crowd:
                # Those that were answered just now are about to come again: one block for all of them costs
                # everyone less than two. Whoever does not come delays the others by half a batch at most.
                self._wanted = self._crowd
                linger = min(LINGER_S, self._busy_s / 2)
                self._changed.wait_for(lambda: len(self._queue) >= self._crowd or self._closing, linger)
                self._wanted = 1
            return self._group()

    def _group(self) -> list[PendingAppend]:
        """Take from the queue what fits into one batch. Call with `_changed` held."""
        return take_group(self._queue, self._sealer.room(), self._limits.batch_events)

    def _serve(self, group: list[PendingAppend], *, patient: bool) -> None:
        """Record the group, put its block on the chain, answer everyone."""
        began = time.monotonic()
        try:
            self._record_group(group)
            self._finish(patient=patient)
        except Exception as e:  # the thread must live, and the callers must hear of it
            error = e if isinstance(e, VaultError) else StorageError(f"the log failed: {type(e).__name__}: {e}")
            fail_all(group, error if self._unfinished is None else recorded(error))
        except BaseException:  # the caller that has the turn was interrupted: the others need not wait for it
            if self._unfinished is None:
                fail_all(group, TransportError("the append was interrupted: repeat the request"))
            raise
        self._busy_s = time.monotonic() - began
        self._served += 1
        self._crowd = len(group) + len(self._queue)

    def _record_group(self, group: list[PendingAppend]) -> None:
        """One transaction for everyone in the group whose condition holds."""
        batch: SignedBatch | None = None
        fault("append.before_index")
        try:
            with self._index.database.transaction() as connection:
                marks = self._index.flush_marks(connection)
                staged = stage(self._index, connection, group, self._clock.wall_ms())
                if staged.effective:
                    batch = self._record(connection, staged.effective, staged.answers)
        except BaseException:
            self._ledger.forget_current()
            if batch is not None:
                self._index.take_back(batch.batch_id)
            raise
        if batch is None:
            answer_all(staged.answers)
        else:
            self._unfinished = batch, staged.answers
        self._index.forget_marks(marks)
        if staged.twins:
            with self._changed:
                self._queue.extendleft(reversed(staged.twins))
        fault("append.after_index")

    def _finish(self, *, patient: bool) -> None:
        """Put the recorded batch on the chain and answer everyone; if that fails, the thread tries again.

        Args:
            patient: try as long as it takes. A caller that has the turn tries once.
        """
        if self._unfinished is None:
            return
        batch, answers = self._unfinished
        last = max((a.last for _, a in answers if isinstance(a, Appended)), default=0)
        if self._publish(batch.batch_id, batch.envelope(), last, answers, attempts=None if patient else 1):
            self._unfinished = None
            answer_all(answers)

    def _record(
        self,
        connection: apsw.Connection,
        staged: list[PendingAppend],
        answers: Answers,
    ) -> SignedBatch:
        """Sign the batch, store it with the replies, and prepare the answers."""
        rows = [row for append in staged for row in append.rows]
        self._chain.build_on(self._index.head_blocks(connection, self._limits.batch_heads))
        batch, verdict = self._sealer.seal(connection, [r for append in staged for r in append.records], rows)
        first, _ = self._ledger.record(connection, batch, verdict, block=None)
        now_ms = batch.body.time_ms
        drop_expired(connection, now_ms)
        for append in staged:
            last = first + len(append.rows) - 1
            reply = None
            if append.receipt is not None:
                reply = keep_reply(connection, append.receipt, first, last, now_ms)
            answers.append((append, Appended(first=first, last=last, reply=reply)))
            first = last + 1
        return batch

    def _publish(
        self,
        batch_id: BatchId,
        envelope: bytes,
        last: int | None = None,
        answers: Answers | None = None,
        *,
        attempts: int | None = None,
    ) -> bool:
        """Create the block, as often as it takes or `attempts` times; False when it was not, or the node closes.

        While there is no room for it, those who wait are told so; the batch is recorded and will be sent.
        """
        self._local_begin()
        for attempt in itertools.count(1):
            refused = False
            try:
                block = self._chain.append(envelope)
                break
            except TransportError:
                pass
            except VaultError as e:
                refused = True
                self._refuse(answers, e)
            if attempt == attempts:
                return False
            pause = RETRY_S[min(attempt, len(RETRY_S)) - 1]
            if self._pause(pause, until_asked=refused):
                return False
        fault("append.after_block")
        self._local_block(block)  # first: what it stands on must be written down with its mark
        self._index.on_chain(batch_id, block.key)
        self._index.publish_horizon(last)
        self.last_error = None
        return True

    def _pause(self, seconds: float, *, until_asked: bool) -> bool:
        """Wait before the next attempt, at most until somebody asks; whether the node closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (until_asked and self._queue), seconds)
            return self._closing

    def _refuse(self, answers: Answers | None, error: VaultError) -> None:
        """Tell everyone who waits. What is recorded already will be sent: nobody may take it for failed."""
        with self._changed:
            waiting, self._queue = list(self._queue), deque()
        fail_all((append for append, _ in answers or ()), recorded(error))
        fail_all(waiting, error)

    def _flush_marks(self) -> None:
        """Write down which blocks hold our batches, when nobody waits for anything better; on a full disk, later."""
        with contextlib.suppress(VaultError):  # a mark that is lost is found again on the chain
            with self._index.database.transaction() as connection:
                marks = self._index.flush_marks(connection)
            self._index.forget_marks(marks)
        fault("append.after_mark")
