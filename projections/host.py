"""Runs the views of one node: one thread that is woken by the log and folds events in large transactions.

Each view's rows and position are committed together, so that no event is folded twice or skipped. A view that
fails at an event parks it and goes on (order-free views), or stops there (others); the rest is not held up.
It refuses to poll. Spec: docs/adr/0005-projections.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBReadResponse, DCBSequencedEvent

from walytis_vault.domain.errors import MisuseError, StorageError, TimedOutError, UnknownIdError, VaultError
from walytis_vault.domain.events import ClosedMapper, Recorded
from walytis_vault.domain.faults import fault
from walytis_vault.projections.base import Local, Page, Request, View
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.store import ViewStore

BATCH: Final = 500
"""Events in one transaction (a count)."""
CLOSE_SECONDS: Final = 5.0


class EventLog(Protocol):
    """What the host needs of the log: eventsourcing's recorder, and a way to be woken."""

    def read(
        self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None
    ) -> DCBReadResponse:
        """Events after a position, oldest first."""
        ...

    def listen(self, event: threading.Event) -> None:
        """Set `event` whenever something was added."""
        ...

    def unlisten(self, event: threading.Event) -> None:
        """Stop that."""
        ...


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What happened at a position. Ids are hex text, the time is ISO 8601 (UTC) by the author's clock."""

    position: int
    type: str
    author: str
    time: str
    ids: tuple[str, ...] = ()
    row: dict[str, Any] | None = None
    """The view's row as it is now; None for subscriptions to "events", or when there is no row any more."""


class ViewState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a view is."""

    position: int
    hash: str
    """Hex SHA-256, equal on all nodes with equal logs."""
    parked: int = 0
    """Events that failed and wait for `retry` (a count)."""
    error: str | None = None
    """Why the view stopped, or why its oldest parked event failed."""
    rebuilding: float | None = None
    """Progress of a rebuild from 0 to 1, None when there is none."""


ViewFactory = Callable[..., View]


class ProjectionHost:
    """The views of one node. All methods may be called from any thread; only VaultError escapes."""

    def __init__(
        self,
        log: EventLog,
        store: ViewStore,
        views: Sequence[type[View]],
        *,
        local: Local | None = None,
        mapper: ClosedMapper | None = None,
        batch: int = BATCH,
    ) -> None:
        """Prepare the views; `start` lets them run.

        Args:
            batch: events in one transaction.
        Raises:
            MisuseError: two views have the same name.
            StorageError: the store cannot be used.
        """
        self._log, self._store = log, store
        self._mapper = mapper or ClosedMapper()
        self._local = local or Local()
        self._batch = batch
        names = [v.name for v in views]
        if len(set(names)) != len(names):
            raise MisuseError(f"two views have the same name among {', '.join(sorted(names))}")
        self._views = {v.name: LiveView(v, store, self._local) for v in views}
        self._wake = threading.Event()
        self._work = threading.RLock()
        """Held while views are folded: one writer."""
        self._moved = threading.Condition()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failure: VaultError | None = None
        self._position = 0
        with self._work, store.transaction() as connection:
            for live in self._views.values():
                live.open(connection)
        self._position = self._lowest()

    # Running

    def start(self) -> None:
        """Follow the log in a thread of its own until `close`."""
        if self._thread is not None:
            raise MisuseError("the views run already")
        self._log.listen(self._wake)
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="projections", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Say that the log may have grown. Cheap; call it from anywhere."""
        self._wake.set()

    def close(self) -> None:
        """Stop after the current batch. Takes at most a few seconds; idempotent."""
        self._closing = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._log.unlisten(self._wake)
            thread.join(CLOSE_SECONDS)
        with self._moved:
            self._moved.notify_all()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            try:
                self.catch_up()
            except VaultError as e:
                self._fail(e)
                return
            except Exception as e:  # a bug: nothing that follows could be trusted
                self._fail(StorageError(f"the views stopped: {type(e).__name__}: {e}"))
                return

    def _fail(self, error: VaultError) -> None:
        with self._moved:
            self._failure = error
            self._moved.notify_all()

    def catch_up(self) -> int:
        """Fold everything that the log has now, in the caller's thread. Returns the position of the views."""
        while not self._closing and self._advance():
            pass
        return self._position

    def _advance(self) -> bool:
        """Fold one batch into every view that waits for it. False when there is nothing left to do."""
        with self._work:
            running = [v for v in self._views.values() if not v.stopped]
            if not running:
                return False
            start = min(v.position for v in running)
            batch = list(self._log.read(after=start, limit=self._batch))
            if not batch:
                return False
            events = [(e.position, self._decode(e)) for e in batch]
            self._fold(running, events)
            self._position = self._lowest()
            position = self._position
        with self._moved:
            self._moved.notify_all()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback(position)
        return True

    def _fold(self, running: Sequence[LiveView], events: Sequence[tuple[int, Recorded | VaultError]]) -> None:
        try:
            with self._store.transaction() as connection:
                for live in running:
                    live.fold(connection, events)
                fault("projections.before_commit")
        except StorageError:
            for live in running:
                live.roll_back()
            raise
        except Exception:
            # Some handler failed: find out which, one view and one event at a time.
            for live in running:
                live.roll_back()
            for live in running:
                live.fold_slowly(events)
        else:
            for live in running:
                live.committed()
        fault("projections.after_commit")

    def _decode(self, sequenced: DCBSequencedEvent) -> Recorded | VaultError:
        try:
            recorded = self._mapper.to_domain_event(sequenced.event)
        except VaultError as e:
            return e
        if not isinstance(recorded, Recorded):
            return MisuseError("the log gave an event without its origin")
        return recorded

    def _lowest(self) -> int:
        running = [v.position for v in self._views.values() if not v.stopped]
        return min(running, default=0)

    # Waiting

    @property
    def position(self) -> int:
        """Every view that runs includes the log up to here."""
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
        """Call back with the position after each commit, from the projection thread: return quickly, never raise.

        Returns:
            A function that stops the calls.
        """
        token = object()
        with self._moved:
            self._callbacks[id(token)] = callback

        def stop() -> None:
            with self._moved:
                self._callbacks.pop(id(token), None)

        return stop

    # Asking

    def view(self, name: str) -> LiveView:
        """A view by its name. Raises UnknownIdError."""
        live = self._views.get(name)
        if live is None:
            raise UnknownIdError(f"no view {str(name)[:60]!r}: there are {', '.join(sorted(self._views))}")
        return live

    @property
    def names(self) -> tuple[str, ...]:
        """The views, in the order they were given."""
        return tuple(self._views)

    def query(
        self, view: str, *, limit: int | None = 100, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> Page:
        """Rows of a view, as its frozen structs.

        Args:
            limit: rows in this page, None for all.
            cursor: from the page before.
            filters: see docs/views.md; a value of None does not filter.
        Raises:
            UnknownIdError: no such view.
            MisuseError: no such filter, or a bad value.
            StorageError: the store cannot be read.
        """
        return self.view(view).page(Request(limit=limit, cursor=cursor, filters=dict(filters or {})))
