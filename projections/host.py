"""Runs the views of one node: one thread that is woken by the log and folds events in large transactions.

Each view's rows and position are committed together, so that no event is folded twice or skipped. A view that
fails at an event parks it and goes on (order-free views), or stops there (others); the rest is not held up.
It never polls. Spec: docs/adr/0005-projections.md; questions are answered in asking.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from eventsourcing.dcb.api import DCBSequencedEvent

from walytis_vault.domain.errors import MisuseError, StorageError, TimedOutError, VaultError
from walytis_vault.domain.events import ClosedMapper, Recorded
from walytis_vault.domain.faults import fault
from walytis_vault.projections.asking import Asking
from walytis_vault.projections.base import Local, View
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.log import EventLog, Horizon
from walytis_vault.projections.runner import Decoded, Runner
from walytis_vault.projections.source import Source
from walytis_vault.projections.store import ViewStore

BATCH: Final = 500
"""Events read and decoded at once (a count): what may be in memory."""
PAGES: Final = 10
"""Batches in one transaction while there is much to fold (a count)."""
CLOSE_SECONDS: Final = 4.0


class ProjectionHost(Asking):
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
        self._log, self._horizon, self._store = log, horizon, store
        self._mapper = mapper or ClosedMapper()
        self._local = local or Local()
        self._batch = batch
        self._epoch, self._temporary = epoch or (lambda: 0), temporary
        self._follows_epoch = epoch is not None
        self._sources = {s.name: s for s in sources}
        self._views = {v.name: LiveView(v, store, self._local) for v in views}
        self._work = threading.RLock()
        """Held while events are folded: one writer."""
        self._moved = threading.Condition()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._poked = False
        self._reset = False
        self._failure: VaultError | None = None
        with self._work, store.transaction() as connection:
            for live in self._views.values():
                live.open(connection, self._epoch())
        front = max((v.position for v in self._views.values()), default=0)
        for live in self._views.values():
            live.behind = live.position < front
        self._position = self._lowest()

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
        self._horizon.wake()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_SECONDS)
        with self._work:
            for live in self._views.values():
                live.save_hash()
        with self._moved:
            self._moved.notify_all()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._poked = False
                self.catch_up()
            except VaultError as e:
                self._fail(e)
                return
            except Exception as e:  # a bug: nothing that follows could be trusted
                self._fail(StorageError(f"the views stopped: {type(e).__name__}: {e}"))
                return
            seen = max((v.position for v in self._views.values() if not v.runner.stopped), default=0)
            self._horizon.wait_beyond(seen, None, lambda: self._closing or self._poked)

    def _fail(self, error: VaultError) -> None:
        with self._moved:
            self._failure = error
            self._moved.notify_all()

    def catch_up(self) -> int:
        """Fold everything that the log has now, in the caller's thread. Returns the position of the views."""
        while not self._closing:
            if stale := self._stale():
                self.rebuild(*stale)
            if not self._advance():
                break
        return self._position

    def _stale(self) -> list[str]:
        """Views that were built from a past that is no longer the log's. Asked again after every batch: the batch
        that voids others arrives together with the new epoch."""
        if any(live.building for live in self._views.values()):
            return []  # whoever rebuilds wakes us at the end
        if self._reset:
            self._reset = False
            return list(self._views)
        if not self._follows_epoch:
            return []
        epoch = self._epoch()
        return [live.name for live in self._views.values() if live.epoch != epoch]

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
                    self._announce()
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
        try:
            with self._store.transaction() as connection:
                events, looked = first
                for _ in range(PAGES):
                    for runner in runners:
                        runner.fold(connection, events, looked)
                    if len(events) < self._batch:
                        break
                    events, looked = self._read(looked, upto)
                fault("projections.before_commit")
        except StorageError:
            for runner in runners:
                runner.roll_back()
            raise
        except Exception:
            # Some handler failed: go through the first batch again, one view and one event at a time.
            for runner in runners:
                runner.roll_back()
            for runner in runners:
                runner.fold_slowly(*first)
        else:
            for runner in runners:
                runner.committed()
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

    def _announce(self) -> None:
        with self._moved:
            self._position = position = self._lowest()
            self._moved.notify_all()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback(position)

    # Waiting

    @property
    def position(self) -> int:
        """Every view that runs and is not catching up includes the log up to here."""
        return self._position

    def wait(self, position: int, *, timeout: float) -> int:
        """Block until the views include `position`; return theirs.

        Args:
            timeout: seconds.
        Raises:
            TimedOutError: not in time, or the host was closed.
            StorageError: the views have stopped.
        """
        with self._moved:
            self._moved.wait_for(lambda: self._position >= position or self._closing or self._failure, timeout)
            if self._position >= position:
                return self._position
            if self._failure is not None:
                raise StorageError(f"the views have stopped: {self._failure}") from self._failure
        raise TimedOutError(f"the views are at {self._position} and did not reach {position} within {timeout:g} s")

    def on_advance(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call back with the position after each commit, from the folding thread: return quickly, never raise.

        Returns:
            A function that stops the calls.
        """
        token = object()
        with self._moved:
            self._callbacks[id(token)] = callback

        def stop() -> None:
            nonlocal token
            with self._moved:
                self._callbacks.pop(id(token), None)

        return stop

    # Repairing

    def reset_all(self) -> None:
        """Events that were folded are void now, or will be when the log's transaction commits.

        Only sets a flag: the folding thread rebuilds. With an `epoch` it does so when that has changed.
        """
        self._reset = not self._follows_epoch
        self._poked = True
        self._horizon.wake()

    def rebuild(self, *names: str) -> None:
        """Build views anew from the log beside the live ones, then swap. Without names: all of them.

        Runs in the caller's thread; queries and new events go on meanwhile.
        Raises:
            UnknownIdError: no such view.
            StorageError: the store refused; the live views are as they were.
        """
        lives = [self.live(n) for n in names] if names else list(self._views.values())
        if not lives:
            return
        with self._work:
            if any(live.building for live in lives):
                raise MisuseError("a rebuild of this view is already under way")
            with self._store.transaction() as connection:
                made = [live.begin_building(connection, self._epoch()) for live in lives]
            for live, runner in zip(lives, made, strict=True):
                live.building = runner
        try:
            while not self._closing and not self._rebuild_step(lives, made):
                self._advance()
        finally:
            for live in lives:
                live.building = None
            self._poked = True
            self._horizon.wake()

    def _rebuild_step(self, lives: Sequence[LiveView], made: Sequence[Runner]) -> bool:
        """Fold one batch into the new generations; swap and return True when they have caught up."""
        with self._work:
            growing = [r for r in made if not r.stopped]
            start = min((r.position for r in growing), default=0)
            if growing and self._fold(growing, start):
                fault("projections.rebuild")
                return False
            if any(not runner.indexed for runner in made):
                with self._store.transaction() as connection:
                    for runner in made:
                        runner.index(connection)
                return False
            with self._store.transaction() as connection:
                for live, runner in zip(lives, made, strict=True):
                    live.swap(connection, runner)
            for live, runner in zip(lives, made, strict=True):
                live.adopt(runner)
                live.behind = False
            self._announce()
            return True

    def retry(self, name: str) -> int:
        """Fold the parked events of a view again; returns how many are still parked.

        Raises:
            UnknownIdError: no such view. StorageError.
        """
        live = self.live(name)
        with self._work:
            runner = live.runner
            for position, _ in runner.parked():
                found = next(iter(self._log.read(after=position - 1, limit=1)), None)
                if found is not None and found.position == position:
                    runner.retry(position, self._decode(found))
            live.reset_hash()
            runner.stopped = None
        self._poked = True
        self._horizon.wake()
        if self._thread is None:
            self.catch_up()
        return len(runner.parked())

    def forget(self, contents: Sequence[bytes]) -> None:
        """These contents were erased here: drop their sealed descriptors and everything opened. Raises StorageError."""
        with self._work, self._store.transaction() as connection:
            for live in self._views.values():
                for runner in (live.runner, live.building):
                    if runner is not None:
                        runner.view.forget(connection, contents)
