"""Folds events into one generation of one view: position, parking and stopping.

The host opens transactions and calls `fold`; when that fails, `fold_slowly` finds the event at fault. The
bookkeeping stands in the view's own store, in the same transactions as the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from eventsourcing.persistence import Tracking

from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.events import Recorded
from walytis_vault.domain.faults import fault
from walytis_vault.projections.base import LATE, LOG, View
from walytis_vault.projections.blame import is_its_own, sentence
from walytis_vault.projections.store import Connection, Table, ViewStore, one

PARKED: Final = Table(
    name="parked",
    columns={"view": "text", "generation": "integer", "position": "integer", "error": "text"},
    primary_key=("view", "generation", "position"),
)
MARKS: Final = Table(
    name="marks",
    columns={"view": "text", "generation": "integer", "position": "integer", "event": "blob"},
    primary_key=("view", "generation"),
)
"""The last event that each view folded: whether the rows belong to this log, or to another state of it."""
Decoded = Recorded | VaultError
"""An event of the log, or why it could not be decoded."""


def mark_of(recorded: Recorded) -> bytes:
    """What tells an event of the log from every other."""
    return recorded.origin.batch_id + recorded.origin.index.to_bytes(8, "big")


class Runner:
    """One generation of a view. Folding is done by one thread at a time."""

    def __init__(self, view: View, store: ViewStore) -> None:
        self.view = view
        self.position = 0
        """Committed position."""
        self.stopped: str | None = None
        """Why this view folds nothing more."""
        self.trouble: str | None = None
        """What it could not do beside folding."""
        self.indexed = True
        """Whether the indexes that only queries need exist."""
        self._store = store
        self._reached = 0
        self._last: tuple[int, Recorded] | None = None
        """The last event that was folded since the last commit."""
        self._late = False
        """Whether there are changes that subscribers get with the next event."""

    @property
    def generation(self) -> int:
        """Number of this generation."""
        return self.view.view.generation

    def open(self, connection: Connection, *, bulk: bool = False) -> None:
        """Create what is missing and find out how far the view is. With `bulk`, indexes for queries come later."""
        self.indexed = not bulk
        self.view.create(connection, bulk=bulk)
        self.position = self._reached = self.view.view.position_in(connection) or 0
        self._late = self.view.has_late(connection)

    def index(self, connection: Connection) -> None:
        """Create the indexes that `open` left out."""
        self.view.create(connection)
        self.indexed = True

    def drop(self, connection: Connection) -> None:
        """Remove all traces of this generation."""
        self.view.drop(connection)
        for table in (PARKED, MARKS):
            connection.execute(f"DELETE FROM {table.name} WHERE view = ? AND generation = ?", self._id())

    def fold(self, connection: Connection, events: Iterable[tuple[int, Decoded]], looked: int) -> None:
        """Fold events inside the host's transaction. Raises whatever a handler raises.

        Args:
            events: (position, event), ascending; those at or before the view's position are passed over.
            looked: position up to which the log was looked at: there may be gaps.
        """
        self.gather(connection, events, looked)
        self.write(connection)

    def gather(self, connection: Connection, events: Iterable[tuple[int, Decoded]], looked: int) -> None:
        """As `fold`, but what can be written together waits for `write`."""
        view, start = self.view, self._reached
        if looked <= start:
            return
        handlers = view.handlers
        with view.view.joined(connection):
            for position, recorded in events:
                if position <= start:
                    continue
                if isinstance(recorded, VaultError):
                    self._park(connection, position, recorded)
                    continue
                handler = handlers.get(type(recorded.event))
                if handler is not None:
                    handler(connection, recorded.event, recorded.origin, position)
                self._last = position, recorded
        self._reached = looked

    def write(self, connection: Connection) -> None:
        """Write what was gathered, and the position, before the host commits."""
        if self._reached <= self.position:
            return
        with self.view.view.joined(connection):
            self.view.flush(connection)
            if self._last is not None:
                self._mark(connection, self._last[0], mark_of(self._last[1]))
                if self._late:
                    self.view.list_late(connection, self._last[0])
            self.view.view.insert_tracking(Tracking(LOG, self._reached))

    def _mark(self, connection: Connection, position: int, mark: bytes) -> None:
        connection.execute(
            "INSERT INTO marks (view, generation, position, event) VALUES (?, ?, ?, ?) ON CONFLICT (view, generation)"
            " DO UPDATE SET position = excluded.position, event = excluded.event",
            (*self._id(), position, mark),
        )

    def mark(self, connection: Connection) -> tuple[int, bytes] | None:
        """Position and mark of the last event that was folded."""
        row = one(connection.execute("SELECT position, event FROM marks WHERE view = ? AND generation = ?", self._id()))
        return None if row is None else (int(row[0]), bytes(row[1]))

    def committed(self) -> None:
        """The host's transaction is committed."""
        self.position = self._reached
        self._late = self._late and self._last is None
        self._last = None

    def roll_back(self) -> None:
        """The host's transaction was rolled back."""
        self._reached = self.position
        self._last = None
        try:
            self.view.roll_back()
        except Exception as e:  # what it remembers now was never committed
            self.stopped = f"its roll_back failed: {sentence(e)}"

    def fold_slowly(self, events: Sequence[tuple[int, Decoded]], looked: int) -> None:
        """Fold with one transaction for each event; park what fails, or stop there.

        Raises:
            StorageError: the store refused, whatever the view says.
        """
        for position, event in events:
            if self.stopped:
                return
            if position <= self.position:
                continue
            try:
                with self._store.transaction() as connection:
                    self.fold(connection, [(position, event)], position)
            except Exception as e:
                self.roll_back()
                if not is_its_own(e):
                    raise
                if self.view.order_free and not self.stopped:
                    self._pass_over(position, e)
                else:
                    self.stopped = self.stopped or f"position {position}: {sentence(e)}"
            if not self.stopped:
                self.committed()
        if looked > self.position and not self.stopped:
            with self._store.transaction() as connection, self.view.view.joined(connection):
                self.view.view.insert_tracking(Tracking(LOG, looked))
            self._reached = looked
            self.committed()

    def _pass_over(self, position: int, error: Exception) -> None:
        try:
            with self._store.transaction() as connection, self.view.view.joined(connection):
                self._park(connection, position, error)
                self.view.view.insert_tracking(Tracking(LOG, position))
                fault("projections.park")
        except Exception as e:
            if not is_its_own(e):
                raise
            self.stopped = f"position {position} cannot be parked: {sentence(e)}"
        else:
            self._reached = position

    def _park(self, connection: Connection, position: int, error: Exception) -> None:
        connection.execute(
            "INSERT INTO parked (view, generation, position, error) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*self._id(), position, sentence(error)),
        )

    def parked(self) -> list[tuple[int, str]]:
        """(position, error) of the events that failed, oldest first."""
        sql = "SELECT position, error FROM parked WHERE view = ? AND generation = ? ORDER BY position"
        with self._store.read() as connection:
            return [(int(p), str(e)) for p, e in connection.execute(sql, self._id())]

    def retry(self, position: int, event: Decoded) -> bool:
        """Fold a parked event now, late: sound because the fold is order-free. False when it fails again."""
        view = self.view
        try:
            if isinstance(event, VaultError):
                raise event
            with self._store.transaction() as connection, view.view.joined(connection):
                view.touch_at = LATE  # subscribers are beyond the event's own position
                view.fold(connection, event, position)
                view.flush(connection)
                connection.execute(
                    "DELETE FROM parked WHERE view = ? AND generation = ? AND position = ?", (*self._id(), position)
                )
        except Exception as e:
            self.roll_back()
            if not is_its_own(e):
                raise
            return False
        finally:
            view.touch_at = None
        self._late = True
        return True

    def seal(self) -> None:
        """The vault was locked: let the view drop what it opened."""
        try:
            self.view.seal()
        except Exception as e:
            self.trouble = f"its seal failed: {sentence(e)}"

    def forget(self, contents: Sequence[bytes]) -> None:
        """These contents were erased here: let the view drop what it has of them. What is in memory goes in any case.

        Raises:
            StorageError: the store refused.
        """
        try:
            with self._store.transaction() as connection:
                self.view.forget(connection, contents)
        except Exception as e:
            self.roll_back()
            if not is_its_own(e):
                raise
            self.trouble = f"its forget failed: {sentence(e)}"
        finally:
            self._forget_opened(contents)

    def _forget_opened(self, contents: Sequence[bytes]) -> None:
        try:
            self.view.forget_opened(contents)
        except Exception as e:
            self.trouble = f"its forget_opened failed: {sentence(e)}"

    def _id(self) -> tuple[str, int]:
        return self.view.name, self.generation
