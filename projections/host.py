"""Runs the views of one node: one thread that is woken by the log and folds events in large transactions.

Each view's rows and position are committed together, so that no event is folded twice or skipped. A view that
fails at an event parks it and goes on (order-free views), or stops there (others); the rest is not held up.
It never polls. Spec: docs/adr/0005-projections.md; questions are answered in asking.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Final

from eventsourcing.dcb.api import DCBSequencedEvent

from walytis_vault.domain.errors import MisuseError, StorageError, StorageUnavailableError, VaultError
from walytis_vault.domain.events import ClosedMapper, Recorded
from walytis_vault.domain.faults import fault
from walytis_vault.projections.base import Local, View
from walytis_vault.projections.blame import is_its_own, sentence
from walytis_vault.projections.live import BOOKKEEPING, LiveView
from walytis_vault.projections.log import EventLog, Horizon
from walytis_vault.projections.past import Past
from walytis_vault.projections.repairing import Repairing
from walytis_vault.projections.runner import Decoded, Runner, mark_of
from walytis_vault.projections.source import Source
from walytis_vault.projections.store import Connection, ViewStore

BATCH: Final = 500
"""Events read and decoded at once (a count): what may be in memory."""
PAGES: Final = 10
"""Batches in one transaction while there is much to fold (a count)."""
CLOSE_SECONDS: Final = 4.0
RETRY_S: Final = 0.1
"""How soon a store that is away is tried again: at first, then at each doubling, up to `RETRY_MOST_S`."""
RETRY_MOST_S: Final = 2.0
_NEVER: Final = 2**63 - 1


class ProjectionHost(Repairing):
    """The views of one node. All methods may be called from any thread; only VaultError escapes."""

    def __init__(
        self,
        log: EventLog,
        horizon: Horizon,
        store: ViewStore,
        views: Sequence[type[View]],
        *,
        local: Local | None = None,
        sources: Sequence[Source] = (),
        epoch: Callable[[], int] | None = None,
        temporary: Callable[[], ViewStore] | None = None,
        mapper: ClosedMapper | None = None,
        batch: int = BATCH,
    ) -> None:
        """Prepare the views; `start` lets them run.

        Args:
            sources: views that somebody else keeps (the audit, for one).
            epoch: a number that the log changes, in the same transaction, when events that it gave before became
                void; views that were built with another one are rebuilt. None leaves that to `reset_all`.
            temporary: makes the store of a replay.
            batch: events in one transaction.
        Raises:
            MisuseError: two views have the same name.
            StorageError: the store cannot be used.
        """
        names = [*(v.name for v in views), *(s.name for s in sources), "events"]
        if len(set(names)) != len(names):
            raise MisuseError(f"two views have the same name among {', '.join(sorted(names))}")
        super().__init__()
        self._log, self._horizon, self._store = log, horizon, store
        self._mapper = mapper or ClosedMapper()
        self._local = local or Local()
        self._batch = batch
        self._epoch, self._temporary = epoch or (lambda: 0), temporary
        self._follows_epoch = epoch is not None
        self._sources = {s.name: s for s in sources}
        self._past = Past(self._fold_past)
        self._views = {v.name: LiveView(v, store, self._local) for v in views}
        self._broken = {}
        self._work = threading.RLock()
        """Held while events are folded: one writer."""
        self._thread: threading.Thread | None = None
        self._poked = False
        self._reset = False
        self._lost = False
        """The store lost its server: what was committed last may be lost, so positions are to be read again."""
        self._unforgotten: set[bytes] = set()
        """Contents that were erased here while the store was away."""
        store.on_loss(self._lose)
        self._open()

    def _open(self) -> None:
        """Read how far the views are; drop what a crash left half done."""

        def open_one(live: LiveView, connection: Connection) -> None:
            live.open(connection, self._epoch(), self._is_ours)

        with self._work:
            with self._store.transaction() as connection:  # what fails here is no view's fault
                for table in BOOKKEEPING:
                    self._store.create(connection, table)
            self._each(self._views.values(), open_one)
            if self._unforgotten:
                for live in self._views.values():
                    live.runner.forget(sorted(self._unforgotten))
                self._unforgotten.clear()
        front = max((v.position for v in self._views.values()), default=0)
        for live in self._views.values():
            live.behind = live.position < front
        self._announce(self._lowest())

    def _is_ours(self, position: int, mark: bytes) -> bool:
        """Whether the event with this mark stands at this position of the log."""
        if position > self._horizon.horizon:
            return position <= self._horizon.last  # its block is on the way to the chain again
        found = next(iter(self._log.read(after=position - 1, limit=1)), None)
        event = self._decode(found) if found is not None and found.position == position else None
        return isinstance(event, Recorded) and mark_of(event) == mark

    # Running

    def start(self) -> None:
        """Follow the log in a thread of its own until `close`."""
        if self._thread is not None or self._closing:
            raise MisuseError("the views run already, or were closed")
        self._thread = threading.Thread(target=self._run, name="projections", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current batch. Takes at most a few seconds; idempotent. The store stays open."""
        self._closing = True
        self._past.close()
        self._horizon.wake()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_SECONDS)
        with self._work:
            for live in self._views.values():
                # A store that refuses keeps no hash: the next start reads the rows again.
                with contextlib.suppress(StorageError):
                    live.save_hash()
        with self._moved:
            self._moved.notify_all()

    def _run(self) -> None:
        pause = RETRY_S
        while not self._closing:
            try:
                self._poked = False
                self.catch_up()
                pause = RETRY_S
            except StorageError as e:  # away, full, locked by another program: each may pass
                self._set_outage(e)
                self._horizon.wait_beyond(_NEVER, pause, lambda: self._closing)
                pause = min(2 * pause, RETRY_MOST_S)
                continue
            except Exception as e:  # a bug: nothing that follows could be trusted
                self._fail(StorageError(sentence(e)))
                return
            seen = max((v.position for v in self._views.values() if not v.runner.stopped), default=0)
            self._horizon.wait_beyond(seen, None, lambda: self._closing or self._poked)

    def _lose(self, error: StorageUnavailableError) -> None:
        """The store lost its server. Called from any thread."""
        self._lost = True
        self._set_outage(error)
        self._poked = True
        self._horizon.wake()

    def _recover(self) -> None:
        """Find a lost server again, and begin where its tables are."""
        with self._work:
            if self._lost:
                self._store.recover()
                self._lost = False
                try:
                    self._open()
                except BaseException:
                    self._lost = True
                    raise
                self._set_outage(None)

    def catch_up(self) -> int:
        """Fold everything that the log has now, in the caller's thread. Returns the position of the views.

        Raises:
            StorageUnavailableError: the store is away; the next call tries to find it again.
            StorageError: the store refused.
        """
        self._recover()
        while not self._closing:
            if stale := self._stale():
                self._build(self._begin(stale))
            more = self._advance()
            if self._outage is not None and not self._lost:
                self._set_outage(None)
            if not more:
                break
        return self._position

    def _stale(self) -> list[LiveView]:
        """Views that were built from a past that is no longer the log's. Asked again after every batch: the batch
        that voids others arrives together with the new epoch."""
        if any(live.building for live in self._views.values()):
            return []  # whoever rebuilds wakes us at the end
        if self._reset:
            self._reset = False
            return list(self._views.values())
        if not self._follows_epoch:
            return []
        epoch = self._epoch()
        return [live for live in self._views.values() if live.epoch != epoch]

    def _advance(self) -> bool:
        """Fold one batch: views in front first, then those behind. False when nothing is left to do."""
        with self._work:
            running = [v for v in self._views.values() if not v.runner.stopped]
            ahead: int | None = None
            for start in sorted({v.position for v in running}, reverse=True):
                group = [v for v in running if v.position == start]
                if self._fold([v.runner for v in group], start, ahead):
                    for live in group:
                        live.behind = live.behind and ahead is not None and live.position < ahead
                    self._announce(self._lowest())
                    return True
                ahead = start
            return False

    def _read(self, after: int, upto: int | None = None) -> tuple[list[tuple[int, Decoded]], int]:
        """The next events, decoded, and the position up to which the log was looked at."""
        last = self._horizon.horizon if upto is None else upto
        if last <= after:
            return [], after
        found = [e for e in self._log.read(after=after, limit=self._batch) if e.position <= last]
        if len(found) == self._batch:
            last = found[-1].position
        return [(e.position, self._decode(e)) for e in found], last

    def _fold(self, runners: Sequence[Runner], start: int, upto: int | None = None) -> bool:
        """Fold what follows `start`, some batches in one transaction. False when there is nothing."""
        first = self._read(start, upto)
        if first[1] <= start:
            return False
        together = list(runners)
        while together:
            running: Runner | None = None
            try:
                with self._store.transaction() as connection:
                    events, looked = first
                    for _ in range(PAGES):
                        for running in together:
                            running.gather(connection, events, looked)
                        running = None
                        if len(events) < self._batch:
                            break
                        events, looked = self._read(looked, upto)
                    for running in together:
                        running.write(connection)
                    running = None
                    fault("projections.before_commit")
            except Exception as e:
                for runner in together:
                    runner.roll_back()
                if not is_its_own(e):
                    raise
                # The view that failed goes through the first batch alone, one event at a time; the others go on
                # together. Where a commit failed it may be any.
                slow = [r for r in together if running in (r, None)]
                together = [r for r in together if r not in slow and not r.stopped]
                for runner in slow:
                    runner.fold_slowly(*first)
            else:
                for runner in together:
                    runner.committed()
                break
        fault("projections.after_commit")
        return True

    def _decode(self, sequenced: DCBSequencedEvent) -> Decoded:
        try:
            recorded = self._mapper.to_domain_event(sequenced.event)
        except VaultError as e:
            return e
        if not isinstance(recorded, Recorded):
            return MisuseError("the log gave an event without its origin")
        return recorded

    def _lowest(self) -> int:
        running = [v.position for v in self._views.values() if not v.runner.stopped and not v.behind]
        return min(running, default=self._horizon.horizon if not self._views else 0)
