"""One view as the host serves it: its live generation, its hash, its changes, and a generation being built.

A rebuild fills the next generation beside the live one and swaps when it has caught up; what a crash left
half built is dropped at the next start. It folds nothing itself (`runner.py`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Set
from typing import Final

from walytis_vault.domain.errors import StorageError, StorageUnavailableError, ViewFailedError
from walytis_vault.domain.faults import fault
from walytis_vault.projections.announcing import Answer
from walytis_vault.projections.base import (
    BUCKETS,
    TRACKING,
    Local,
    Page,
    Request,
    View,
    ViewRecorder,
)
from walytis_vault.projections.blame import blaming
from walytis_vault.projections.runner import MARKS, PARKED, Runner
from walytis_vault.projections.store import Connection, Table, ViewStore, one

VIEWS: Final = Table(
    name="views",
    columns={"name": "text", "version": "integer", "generation": "integer", "building": "integer", "epoch": "integer"},
    primary_key=("name",),
)
HASHES: Final = Table(
    name="hashes",
    columns={"name": "text", "generation": "integer", "position": "integer", "buckets": "blob"},
    primary_key=("name",),
)
BOOKKEEPING: Final = (VIEWS, PARKED, MARKS, TRACKING, HASHES)
"""What the host keeps in every store."""
MANY_CHANGES: Final = 10_000
"""Changes (a count) from which on the hash reads all buckets again."""


class LiveView:
    """A view and its generations. Threads may share it; the host swaps under its own lock."""

    def __init__(self, view_type: type[View], store: ViewStore, local: Local) -> None:
        self.type = view_type
        self.name = view_type.name
        self._store = store
        self._local = local
        self.runner: Runner
        """The live generation. `open` makes it."""
        self.building: Runner | None = None
        self._epoch = self._building_epoch = 0
        self.behind = False
        """It began behind the others and has not caught up yet."""
        self._hash_lock = threading.Lock()
        self._buckets: dict[int, bytes] = {}
        self._hashed: tuple[int, int] | None = None
        self._hash = ""

    def _make(self, generation: int) -> Runner:
        return Runner(self.type(ViewRecorder(self._store, self.name, generation), self._local), self._store)

    def open(
        self, connection: Connection, epoch: int, is_ours: Callable[[int, bytes], bool] = lambda _at, _mark: True
    ) -> None:
        """Find the live generation, or make the first; a changed version starts from nothing.

        Raises what the view raises.

        Args:
            is_ours: whether the log has the event with this mark at this position. Rows that were folded from
                another log, or from what a restored backup does not have, start from nothing too.
        """
        for table in BOOKKEEPING:
            self._store.create(connection, table)
        self._epoch, self.building = epoch, None
        row = one(
            connection.execute("SELECT version, generation, building, epoch FROM views WHERE name = ?", (self.name,))
        )
        if row is None:
            self.runner = self._make(1)
        else:
            version, generation, building, self._epoch = (int(v) for v in row)
            self.runner = self._make(generation)
            if building:
                self._make(building).drop(connection)  # a crash left it half built, or not yet dropped
            if version != self.type.version or not self._belongs(connection, epoch, is_ours):
                self.runner.drop(connection)
                self.runner = self._make(max(generation, building) + 1)
                self._epoch = epoch
        self.runner.open(connection)
        if self.position == 0:
            self._epoch = epoch
        self._record(connection, self.runner.generation, 0)
        self._load_hash(connection)

    def _belongs(self, connection: Connection, epoch: int, is_ours: Callable[[int, bytes], bool]) -> bool:
        mark = self.runner.mark(connection)
        if mark is None or self._epoch != epoch:  # with another epoch it is rebuilt, while it answers
            return True
        return is_ours(*mark)

    def _record(self, connection: Connection, generation: int, building: int) -> None:
        connection.execute(
            "INSERT INTO views (name, version, generation, building, epoch) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name)"
            " DO UPDATE SET version = excluded.version, generation = excluded.generation,"
            " building = excluded.building, epoch = excluded.epoch",
            (self.name, self.type.version, generation, building, self._epoch),
        )

    @property
    def epoch(self) -> int:
        """The log's epoch that the live generation was built with."""
        return self._epoch

    # Rebuilding

    def begin_building(self, connection: Connection, epoch: int) -> Runner:
        """Make the next generation beside the live one."""
        self._building_epoch = epoch
        left = one(connection.execute("SELECT building FROM views WHERE name = ?", (self.name,)))
        building = self._make(self.runner.generation + 1)
        for unfinished in {building.generation, int(left[0])} - {0} if left else {building.generation}:
            self._make(unfinished).drop(connection)
        self._record(connection, self.runner.generation, building.generation)
        building.open(connection, bulk=True)
        return building

    def swap(self, connection: Connection, building: Runner) -> None:
        """Let `building` be the live generation when the transaction commits; the old one is still there then."""
        self._epoch = self._building_epoch
        self._record(connection, building.generation, self.runner.generation)
        fault("projections.swap")

    def adopt(self, building: Runner) -> Runner:
        """The swap is committed. Returns the old generation, for `clear`."""
        old, self.runner, self.building = self.runner, building, None
        self.reset_hash()
        return old

    def clear(self, connection: Connection, old: Runner) -> None:
        """Drop the generation that was live before."""
        fault("projections.clear")
        old.drop(connection)
        self._record(connection, self.runner.generation, 0)

    # Asking

    @property
    def position(self) -> int:
        """Committed position of the live generation."""
        return self.runner.position

    @property
    def view(self) -> View:
        """The live generation."""
        return self.runner.view

    def ask(self, question: Callable[[Runner], Answer]) -> Answer:
        """Ask the live generation; once more when a rebuild swapped its tables away meanwhile.

        Raises:
            ViewFailedError: the view's own code failed. VaultError: as the question raised it.
        """
        while True:
            runner = self.runner
            try:
                with blaming(self.name):
                    return question(runner)
            except StorageUnavailableError:
                raise
            except (StorageError, ViewFailedError):
                if runner is self.runner:
                    raise

    def page(self, request: Request) -> Page:
        """One page of rows. Raises MisuseError, StorageError, ViewFailedError."""

        def read(runner: Runner) -> Page:
            position = runner.position
            page = runner.view.page(request)
            return Page(rows=page.rows, cursor=page.cursor, position=position)

        return self.ask(read)

    def hash(self) -> str:
        """SHA-256 over the log-derived rows, in hex: equal on all nodes with equal logs.

        Rows fall into 4096 buckets by key; only buckets with changes since the last time are read again.
        """
        with self._hash_lock:
            return self.ask(lambda runner: self._hash_now(runner.view))

    def _hash_now(self, view: View) -> str:
        with self._store.read(large=True) as connection:
            at = view.view.generation, view.view.position_in(connection) or 0
            if at == self._hashed and self._hash:
                return self._hash
            if self._hashed is None or self._hashed[0] != at[0]:
                self._buckets = {}
            dirty = self._dirty(connection, view)
            if dirty is None:
                self._buckets = _all_buckets(connection, view)
            else:
                self._buckets |= {bucket: _bucket(connection, view, bucket) for bucket in dirty}
        whole = hashlib.sha256(f"{self.name}/{self.type.version}".encode())
        for bucket in range(BUCKETS):
            whole.update(self._buckets[bucket])
        self._hashed, self._hash = at, whole.hexdigest()
        return self._hash

    def _dirty(self, connection: Connection, view: View) -> Set[int] | None:
        """The buckets to read again, None for all."""
        if not self._buckets or self._hashed is None:
            return None
        changed = view.changed(connection, self._hashed[1], MANY_CHANGES)
        if len(changed) >= MANY_CHANGES:
            return None
        return {view.bucket(key) for _, key in changed}

    def save_hash(self) -> None:
        """Keep the parts of the hash, so that the next start need not read all rows again. Raises StorageError."""
        with self._hash_lock:
            if self._hashed is None:
                return
            whole = b"".join(self._buckets[bucket] for bucket in range(BUCKETS))
            with self._store.transaction() as connection:
                connection.execute(
                    "INSERT INTO hashes (name, generation, position, buckets) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET generation = excluded.generation, position = excluded.position,"
                    " buckets = excluded.buckets",
                    (self.name, *self._hashed, whole),
                )

    def _load_hash(self, connection: Connection) -> None:
        self._buckets, self._hashed, self._hash = {}, None, ""
        row = one(connection.execute("SELECT generation, position, buckets FROM hashes WHERE name = ?", (self.name,)))
        if row is None or int(row[0]) != self.runner.generation or len(row[2]) != 32 * BUCKETS:
            return
        if int(row[1]) <= self.position:
            self._buckets = {b: bytes(row[2][32 * b : 32 * b + 32]) for b in range(BUCKETS)}
            self._hashed = int(row[0]), int(row[1])

    def reset_hash(self) -> None:
        """The rows changed in a way that the list of changes does not tell. Raises StorageError."""
        with self._hash_lock:
            self._buckets, self._hashed, self._hash = {}, None, ""
            with self._store.transaction() as connection:
                connection.execute("DELETE FROM hashes WHERE name = ?", (self.name,))


def _bucket(connection: Connection, view: View, bucket: int) -> bytes:
    digest = hashlib.sha256()
    for low, high in view.ranges(connection, bucket):
        for _, row in view.digests(connection, low, high):
            digest.update(row)
    return digest.digest()


def _all_buckets(connection: Connection, view: View) -> dict[int, bytes]:
    digests = [hashlib.sha256() for _ in range(BUCKETS)]
    for key, row in view.digests(connection, b"", None):
        digests[view.bucket(key)].update(row)
    return {bucket: digest.digest() for bucket, digest in enumerate(digests)}
