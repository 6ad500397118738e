"""What every view shares: an eventsourcing `Projection` whose tables and position move in one transaction.

A view folds events into tables of its own and answers queries from them. It refuses events at or before its
position (exactly once), and keeps nothing that could not be rebuilt from the log. How to write one: docs/views.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, ClassVar, Final, Protocol

import msgspec
from eventsourcing.persistence import IntegrityError, Tracking, TrackingRecorder
from eventsourcing.projection import Projection

from walytis_vault.domain.errors import MisuseError
from walytis_vault.domain.events import Event, Origin, Recorded
from walytis_vault.domain.forgetting import BY_DEPTH, History
from walytis_vault.projections.store import Connection, Table, ViewStore, one

LOG: Final = "log"
"""The application name under which the host tracks positions."""
LATE: Final = 0
"""Changes that subscribers, who are beyond their events, get with the next event stand at this position meanwhile."""
TRACKING = Table(
    name="tracking",
    columns={"view": "text", "generation": "integer", "application": "text", "position": "integer"},
    primary_key=("view", "generation", "application"),
)


AWAY: Final = 0
HERE: Final = 1
ERASED: Final = 2
"""How this node stands to a content: its bytes are not here; they are; it was destroyed here for ever."""


class Descriptor(Protocol):
    """An opened descriptor: whatever `Local.unseal` returns has these fields."""

    @property
    def name(self) -> str | None: ...
    @property
    def media_type(self) -> str | None: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def length(self) -> int: ...


class Local(msgspec.Struct, frozen=True, kw_only=True):
    """What this node alone knows, beside the log. All may be called from any thread. Nothing of it enters a hash."""

    unseal: Callable[[bytes, bytes], Descriptor | None] = lambda _content_id, _sealed: None
    """(content id, sealed descriptor) -> descriptor, None when the key is not here."""
    unseal_reason: Callable[[bytes, bytes], str | None] = lambda _content_id, _sealed: None
    """(first content of the ballot, sealed reason) -> text, None when the key is not here."""
    has_bytes: Callable[[bytes], bool] = lambda _content_id: False
    erased: Callable[[bytes], bool] = lambda _content_id: False
    held_by: Callable[[Sequence[bytes]], Mapping[bytes, tuple[str, ...]]] = lambda _content_ids: {}
    """Asks other devices which of some contents they hold now: those that were asked about, with who says yes.
    Takes up to a second or so: for queries, once for each page, outside of transactions."""
    many: Callable[[Sequence[bytes]], Sequence[int]] | None = None
    """Answers `kept` for many contents at once; None asks the two above about each."""
    changed: Callable[[int], tuple[int, Sequence[bytes] | None]] = lambda _mark: (0, None)
    """(mark, -1 at first) -> the next mark, and the contents whose key or bytes came or went here since; None when that
    cannot be told: anything may have changed."""
    now_ms: Callable[[], int] = lambda: 0
    """Milliseconds since 1970, for expiry in listings."""
    past: bool = False
    """The view shows an earlier moment: contents may be erased here that the log of then does not yet give up."""
    history: History = BY_DEPTH
    """The exact causes, where the log can tell them. Must say the same on every node."""

    def kept(self, contents: Sequence[bytes]) -> Sequence[int]:
        """How this node stands to each of these contents: `AWAY`, `HERE` or `ERASED`."""
        if self.many is not None:
            return self.many(contents)
        return [ERASED if self.erased(c) else HERE if self.has_bytes(c) else AWAY for c in contents]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of rows."""

    rows: tuple[msgspec.Struct, ...]
    cursor: str | None = None
    """Pass it for the next page; None at the end."""
    position: int = 0
    """Position of the view when it was read."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One query."""

    limit: int | None = 100
    cursor: str | None = None
    filters: dict[str, Any] = {}


class ViewRecorder(TrackingRecorder):
    """The tables of one generation of one view, and its position, in a view store."""

    def __init__(self, store: ViewStore, name: str, generation: int = 1) -> None:
        self.store = store
        self.name = name
        self.generation = generation
        self._joined: Connection | None = None
        self._owner = 0

    def table(self, name: str) -> str:
        """The real name of one of the view's tables."""
        return f"{self.name}_{self.generation}_{name}"

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The transaction that the runner opened, else one of its own."""
        if self._joined is not None and self._owner == get_ident():
            yield self._joined
            return
        with self.store.transaction() as connection, self.joined(connection):
            yield connection

    @contextmanager
    def joined(self, connection: Connection) -> Iterator[None]:
        """Let everything inside write in this transaction."""
        before = self._joined, self._owner
        self._joined, self._owner = connection, get_ident()
        try:
            yield
        finally:
            self._joined, self._owner = before

    def insert_tracking(self, tracking: Tracking) -> None:
        """Record a position. Raises IntegrityError when it is not beyond the last one."""
        with self.writing() as connection:
            moved = one(
                connection.execute(
                    "INSERT INTO tracking (view, generation, application, position) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (view, generation, application) DO UPDATE SET position = excluded.position"
                    " WHERE tracking.position < excluded.position RETURNING position",
                    (self.name, self.generation, tracking.application_name, tracking.notification_id),
                )
            )
            if moved is None:
                raise IntegrityError(f"view {self.name} is at or beyond position {tracking.notification_id}")

    def max_tracking_id(self, application_name: str) -> int | None:
        """The last recorded position."""
        if self._joined is not None and self._owner == get_ident():
            return self.position_in(self._joined, application_name)
        with self.store.read() as connection:
            return self.position_in(connection, application_name)

    def position_in(self, connection: Connection, application_name: str = LOG) -> int | None:
        """The position as this connection sees it."""
        sql = "SELECT position FROM tracking WHERE view = ? AND generation = ? AND application = ?"
        row = one(connection.execute(sql, (self.name, self.generation, application_name)))
        return None if row is None else int(row[0])


Handler = Callable[[Connection, Any, Origin, int], None]


class View(Projection[ViewRecorder]):
    """Base of all views. A subclass sets the class fields and fills in `handlers`, `page` and `rows_by_key`."""

    name: str
    version: ClassVar[int] = 1
    """Raise it when the tables or the fold change: the view then rebuilds itself at start."""
    row: ClassVar[type[msgspec.Struct]]
    """The type of its rows: frozen, every field documented."""
    tables: ClassVar[tuple[Table, ...]] = ()
    order_free: ClassVar[bool] = True
    """True when events may be applied in any order: a parked event is then retried later, while others go on.
    False stops the view at the first event that fails."""
    filters: ClassVar[frozenset[str]] = frozenset()
    """Names that `Request.filters` may have."""

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view)
        self.local = local or Local()
        self.handlers: dict[type[Event], Handler] = {}
        """Event type -> what to do: (connection, event, origin, position)."""
        self._touched: list[tuple[int, bytes]] = []
        self.touch_at: int | None = None
        """Where changes are listed, when not at the event's own position: `LATE` while one is folded late."""
        self._changes = self.t("changes")
        self.rows_since: str | None = None
        """For views whose every row first changes at its own position: SQL that gives (position, key) of rows after
        a position, at most so many, ascending. Those changes need no `touch` (but see `touch_new`)."""

    def t(self, name: str) -> str:
        """The real name of one of the view's tables."""
        return self._view.table(name)

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """The view's tables and the list of its changes."""
        changes = Table(
            name="changes",
            columns={"position": "integer", "key": "blob"},
            primary_key=("position", "key"),
            clustered=True,
        )
        return (*self.tables, changes)

    def create(self, connection: Connection, *, bulk: bool = False) -> None:
        """Make the tables of this generation, if they do not exist; with `bulk` without `Table.indexes`."""
        self._view.store.create(connection, TRACKING)
        for table in self.all_tables:
            if bulk:
                table = msgspec.structs.replace(table, indexes=())  # noqa: PLW2901
            self._view.store.create(connection, msgspec.structs.replace(table, name=self.t(table.name)))

    def drop(self, connection: Connection) -> None:
        """Drop the tables and the position of this generation."""
        for table in self.all_tables:
            self._view.store.drop(connection, self.t(table.name))
        connection.execute("DELETE FROM tracking WHERE view = ? AND generation = ?", (self.name, self._view.generation))

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Fold one event and record its position, in one transaction: what eventsourcing's runners call."""
        try:
            with self._view.writing() as connection:
                self.fold(connection, domain_event, tracking.notification_id)
                self.flush(connection)
                self._view.insert_tracking(tracking)
        except BaseException:
            self.roll_back()
            raise

    def fold(self, connection: Connection, recorded: Any, position: int) -> None:
        """Apply one event by its handler; the caller then flushes and records the position. Do not override it."""
        if not isinstance(recorded, Recorded):
            raise MisuseError("views fold events that come with their origin (Recorded)")
        handler = self.handlers.get(type(recorded.event))
        if handler is not None:
            handler(connection, recorded.event, recorded.origin, position)

    def touch(self, key: bytes, position: int) -> None:
        """Say that the row with this key changed at this position. Subscribers and the hash depend on it."""
        self._touched.append((position if self.touch_at is None else self.touch_at, key))

    def touch_new(self, key: bytes, position: int) -> None:
        """As `touch`, for a row that `rows_since` gives at this position: nothing to list, unless it comes late."""
        if self.touch_at is not None:
            self.touch(key, position)

    def flush(self, connection: Connection) -> None:
        """Write what was collected while folding. Called before each commit."""
        if self._touched:
            connection.executemany(
                f"INSERT INTO {self._changes} (position, key) VALUES (?, ?) ON CONFLICT DO NOTHING",
                self._touched,
            )
            self._touched = []

    def has_late(self, connection: Connection) -> bool:
        """Whether there are changes that subscribers get with the next event."""
        return one(connection.execute(f"SELECT 1 FROM {self._changes} WHERE position = {LATE} LIMIT 1")) is not None

    def list_late(self, connection: Connection, position: int) -> None:
        """List late changes at the position of an event that has just been folded."""
        connection.execute(
            f"INSERT INTO {self._changes} (position, key) SELECT ?, key FROM {self._changes} WHERE position = {LATE}"
            " ON CONFLICT DO NOTHING",
            (position,),
        )
        connection.execute(f"DELETE FROM {self._changes} WHERE position = {LATE}")

    def roll_back(self) -> None:
        """Drop what was remembered of a transaction that did not commit. Overrides call this too."""
        self._touched = []

    def changed(self, connection: Connection, after: int, limit: int) -> list[tuple[int, bytes]]:
        """(position, key) of changes after a position, oldest first; all of the last position even beyond `limit`."""
        sql = f"SELECT position, key FROM {self._changes}"
        found = [
            (int(p), bytes(k))
            for p, k in connection.execute(sql + " WHERE position > ? ORDER BY position, key LIMIT ?", (after, limit))
        ]
        if len(found) == limit and found:
            last = found[-1][0]
            rest = connection.execute(sql + " WHERE position = ? AND key > ? ORDER BY key", (last, found[-1][1]))
            found += [(int(p), bytes(k)) for p, k in rest]
        if self.rows_since is not None:
            new = ((int(p), bytes(k)) for p, k in connection.execute(self.rows_since, (after, limit)))
            found = sorted({*found, *new})
            if len(found) > limit:
                last = found[limit - 1][0]
                found = [change for change in found if change[0] <= last]
        return found

    def key_text(self, key: bytes) -> str:
        """A row's key as people write it."""
        return key.hex()

    def check_filters(self, filters: dict[str, Any]) -> None:
        """Refuse filters that this view does not have. Raises MisuseError."""
        unknown = sorted(set(filters) - self.filters)
        if unknown:
            known = ", ".join(sorted(self.filters)) or "none"
            raise MisuseError(f"view {self.name} has no filter {unknown[0]!r}; it has: {known}")

    @abstractmethod
    def page(self, request: Request) -> Page:
        """Answer one query. Raises MisuseError for a bad filter, sort or cursor."""

    @abstractmethod
    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """The rows as they are now; keys without a row are left out."""

    def bucket(self, key: bytes) -> int:
        """Which of the `BUCKETS` parts of the hash a row belongs to. Equal on all nodes; spreads well."""
        return bucket_of(key)

    def ranges(self, connection: Connection, bucket: int) -> Iterable[tuple[bytes, bytes | None]]:  # noqa: ARG002
        """The ranges of keys that make up a bucket, ascending: (first, first that is beyond or None)."""
        return (bucket_bounds(bucket),)

    @abstractmethod
    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """Key and log-derived part of each row with low <= key (< high), in the order of keys.

        No positions and no local facts: equal on all nodes with equal logs.
        """

    def seal(self) -> None:
        """The vault was locked: keep nothing in memory that was opened."""

    def forget(self, connection: Connection, contents: Sequence[bytes]) -> None:  # noqa: ARG002
        """Drop sealed bytes of contents that were erased here. Overrides call this too."""
        self.forget_opened(contents)

    def forget_opened(self, contents: Sequence[bytes]) -> None:
        """Drop what is in memory of contents that were erased here."""


BUCKETS: Final = 4096


def bucket_of(key: bytes) -> int:
    """The bucket that a key falls into as a rule: its first 12 bits."""
    first = key[0] if key else 0
    second = key[1] if len(key) > 1 else 0
    return (first << 4) | (second >> 4)


def bucket_bounds(bucket: int) -> tuple[bytes, bytes | None]:
    """The keys of a bucket: (first, first of the next one; None for the last)."""
    return _bucket_low(bucket), None if bucket + 1 == BUCKETS else _bucket_low(bucket + 1)


def _bucket_low(bucket: int) -> bytes:
    if bucket == 0:
        return b""
    first, second = bucket >> 4, (bucket & 15) << 4
    return bytes([first, second]) if second else bytes([first])  # a shorter key sorts first
