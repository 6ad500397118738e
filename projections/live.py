"""One view as the host runs it: which generation is live, where it stands, what it has parked.

It keeps the bookkeeping of a view in the view's own store, in the same transactions as its rows.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from eventsourcing.persistence import Tracking

from walytis_vault.domain.errors import StorageError, VaultError
from walytis_vault.domain.events import Recorded
from walytis_vault.projections.base import (
    BUCKETS,
    LOG,
    TRACKING,
    Local,
    Page,
    Request,
    View,
    ViewRecorder,
    bucket_bounds,
    bucket_of,
)
from walytis_vault.projections.store import Connection, Table, ViewStore, one

VIEWS: Final = Table(
    name="views",
    columns={"name": "text", "version": "integer", "generation": "integer"},
    primary_key=("name",),
)
PARKED: Final = Table(
    name="parked",
    columns={"view": "text", "generation": "integer", "position": "integer", "error": "text"},
    primary_key=("view", "generation", "position"),
)
MAX_ERROR: Final = 500
"""Characters kept of an error."""
MANY_CHANGES: Final = 10_000
"""Changes (a count) from which on all buckets are read again."""
Decoded = Recorded | VaultError


class LiveView:
    """A view and its bookkeeping. Folding is done by one thread at a time; queries by any."""

    def __init__(self, view_type: type[View], store: ViewStore, local: Local) -> None:
        self.type = view_type
        self.name = view_type.name
        self._store = store
        self._local = local
        self.view: View = self._make(1)
        self.position = 0
        self.stopped: str | None = None
        """Why this view folds nothing more."""
        self._reached = 0
        self._hash_lock = threading.Lock()
        self._buckets: dict[int, bytes] = {}
        self._hashed = -1
        self._hash = ""

    def _make(self, generation: int) -> View:
        return self.type(ViewRecorder(self._store, self.name, generation), self._local)

    def open(self, connection: Connection) -> None:
        """Find the live generation, or make the first; a changed version starts from nothing."""
        for table in (VIEWS, PARKED, TRACKING):
            self._store.create(connection, table)
        row = one(connection.execute("SELECT version, generation FROM views WHERE name = ?", (self.name,)))
        generation = 1 if row is None else int(row[1])
        self.view = self._make(generation)
        if row is not None and int(row[0]) != self.type.version:
            self.view.drop(connection)
            self.view = self._make(generation + 1)
            row = None
        if row is None:
            self.adopt(connection, self.view)
        self.view.create(connection)
        self.position = self._reached = self.view.view.position_in(connection) or 0

    def adopt(self, connection: Connection, view: View) -> None:
        """Make a generation the live one."""
        connection.execute(
            "INSERT INTO views (name, version, generation) VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET version = excluded.version, generation = excluded.generation",
            (self.name, self.type.version, view.view.generation),
        )

    # Folding

    def fold(self, connection: Connection, events: Sequence[tuple[int, Decoded]]) -> None:
        """Fold a batch inside the host's transaction. Raises whatever a handler raises."""
        view, start = self.view, self._reached
        with view.view.joined(connection):
            last = start
            for position, recorded in events:
                if position <= start:
                    continue
                if isinstance(recorded, VaultError):
                    self._park(connection, position, recorded)
                else:
                    view.fold(connection, recorded, position)
                last = position
            if last > start:
                view.flush(connection)
                view.view.insert_tracking(Tracking(LOG, last))
            self._reached = last

    def committed(self) -> None:
        """The host's transaction is committed."""
        self.position = self._reached

    def roll_back(self) -> None:
        """The host's transaction was rolled back."""
        self._reached = self.position
        self.view.roll_back()

    def fold_slowly(self, events: Sequence[tuple[int, Decoded]]) -> None:
        """Fold a batch with one transaction for each event; park what fails, or stop there."""
        for event in events:
            if event[0] <= self.position or self.stopped:
                continue
            try:
                with self._store.transaction() as connection:
                    self.fold(connection, [event])
            except StorageError:
                self.roll_back()
                raise
            except Exception as e:
                self.roll_back()
                if not self.type.order_free:
                    self.stopped = f"position {event[0]}: {_sentence(e)}"
                    return
                with self._store.transaction() as connection, self.view.view.joined(connection):
                    self._park(connection, event[0], e)
                    self.view.view.insert_tracking(Tracking(LOG, event[0]))
                self._reached = event[0]
            self.committed()

    def _park(self, connection: Connection, position: int, error: Exception) -> None:
        connection.execute(
            "INSERT INTO parked (view, generation, position, error) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self.name, self.view.view.generation, position, _sentence(error)),
        )

    def parked(self) -> list[tuple[int, str]]:
        """(position, error) of the events that failed, oldest first."""
        sql = "SELECT position, error FROM parked WHERE view = ? AND generation = ? ORDER BY position"
        with self._store.read() as connection:
            return [(int(p), str(e)) for p, e in connection.execute(sql, (self.name, self.view.view.generation))]

    # Asking

    def page(self, request: Request) -> Page:
        """One page of rows. Raises MisuseError, StorageError."""
        position = self.position
        page = self.view.page(request)
        return Page(rows=page.rows, cursor=page.cursor, position=position)

    def hash(self) -> str:
        """SHA-256 over the log-derived rows, in hex: equal on all nodes with equal logs.

        Rows fall into 4096 buckets by key; only buckets with changes since the last time are read again.
        """
        with self._hash_lock:
            view = self.view
            with self._store.read() as connection:
                position = view.view.position_in(connection) or 0
                if position == self._hashed:
                    return self._hash
                for bucket in self._dirty(connection, view):
                    digest = hashlib.sha256()
                    for row in view.digests(connection, *bucket_bounds(bucket)):
                        digest.update(row)
                    self._buckets[bucket] = digest.digest()
            whole = hashlib.sha256(f"{self.name}/{self.type.version}".encode())
            for bucket in range(BUCKETS):
                whole.update(self._buckets[bucket])
            self._hashed, self._hash = position, whole.hexdigest()
            return self._hash

    def _dirty(self, connection: Connection, view: View) -> Iterable[int]:
        if not self._buckets:
            return range(BUCKETS)
        changed = view.changed(connection, self._hashed, MANY_CHANGES)
        if len(changed) >= MANY_CHANGES:
            return range(BUCKETS)
        return {bucket_of(key) for _, key in changed}

    def reset_hash(self) -> None:
        """The rows changed in a way that the list of changes does not tell."""
        with self._hash_lock:
            self._buckets, self._hashed = {}, -1


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_ERROR]
