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
from walytis_vault.projections.announcing import Announcing
from walytis_vault.projections.asking import Asking
from walytis_vault.projections.base import Local, View
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.log import EventLog, Horizon
from walytis_vault.projections.past import Past
from walytis_vault.projections.runner import Decoded, Runner, mark_of
from walytis_vault.projections.source import Source
from walytis_vault.projections.store import ViewStore

BATCH: Final = 500
"""Events read and decoded at once (a count): what may be in memory."""
PAGES: Final = 10
"""Batches in one transaction while there is much to fold (a count)."""
CLOSE_SECONDS: Final = 4.0
RETRY_S: Final = 0.1
"""How soon a store that is away is tried again: at first, then at each doubling, up to `RETRY_MOST_S`."""
RETRY_MOST_S: Final = 2.0
_NEVER: Final = 2**63 - 1


class ProjectionHost(Announcing, Asking):
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
        Announcing.__init__(self)
        self._log, self._horizon, self._store = log, horizon, store
        self._mapper = mapper or ClosedMapper()
        self._local = local or Local()
        self._batch = batch
        self._epoch, self._temporary = epoch or (lambda: 0), temporary
        self._follows_epoch = epoch is not None
        self._sources = {s.name: s for s in sources}
        self._past = Past(self._fold_past)
        self._views = {v.name: LiveView(v, store, self._local) for v in views}
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
        with self._work, self._store.transaction() as connection:
            for live in self._views.values():
                live.open(connection, self._epoch(), self._is_ours)
                live.view.forget(connection, sorted(self._unforgotten))
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
                # A store that is away keeps no hash: the next start reads the rows again.
                with contextlib.suppress(StorageUnavailableError):
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
            except StorageUnavailableError as e:
                self._set_outage(e)
                self._horizon.wait_beyond(_NEVER, pause, lambda: self._closing)
                pause = min(2 * pause, RETRY_MOST_S)
                continue
            except VaultError as e:
                self._fail(e)
                return
            except Exception as e:  # a bug: nothing that follows could be trusted
                self._fail(StorageError(f"the views stopped: {type(e).__name__}: {e}"))
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
        if self._outage is not None:
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
        try:
            with self._store.transaction() as connection:
                events, looked = first
                for _ in range(PAGES):
                    for runner in runners:
                        runner.gather(connection, events, looked)
                    if len(events) < self._batch:
                        break
                    events, looked = self._read(looked, upto)
                for runner in runners:
                    runner.write(connection)
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
            StorageError: the store refused, or was away; the live views are as they were.
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
            if any(live.building is not runner for live, runner in zip(lives, made, strict=True)):
                raise StorageUnavailableError("the views' server went away during the rebuild: repeat it")
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
            old = [live.adopt(runner) for live, runner in zip(lives, made, strict=True)]
            for live in lives:
                live.behind = False
            self._announce(self._lowest())
            # Only now, so that no query meets tables that vanish under the view that it asks. Where this does not
            # work out, the next rebuild or start does it.
            with contextlib.suppress(StorageUnavailableError), self._store.transaction() as connection:
                for live, runner in zip(lives, old, strict=True):
                    live.clear(connection, runner)
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

    def seal(self) -> None:
        """The vault was locked: drop everything opened, here and, by calling them, at those who listen."""
        self._past.forget()
        with self._work:
            for live in self._views.values():
                for runner in (live.runner, live.building):
                    if runner is not None:
                        runner.view.seal()
        self._announce(self._lowest())

    def forget(self, contents: Sequence[bytes]) -> None:
        """These contents were erased here: drop their sealed descriptors and everything opened.

        What a store that is away still holds is sealed under keys that are gone; it is dropped when the store is back.
        Raises:
            StorageError: the store refused.
        """
        self._past.forget()
        with self._work:
            runners = [r for live in self._views.values() for r in (live.runner, live.building) if r is not None]
            try:
                with self._store.transaction() as connection:
                    for runner in runners:
                        runner.view.forget(connection, contents)
            except StorageUnavailableError:
                for runner in runners:
                    runner.view.forget_opened(contents)
                self._unforgotten.update(contents)
                if not self._lost:
                    self._lose(StorageUnavailableError("the views' server was away while contents were forgotten"))
