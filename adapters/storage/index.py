"""The index of the content store: which content lies where, in SQLite.

Holds nothing secret: no key, no name, no true length. A row is the acknowledgement that bytes and key are
durable, so it is always written last and removed first. `forgetting` and `forgotten` are the state machine
of adapters/storage/forgetting.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.packs import PackRange
from walytis_vault.adapters.storage.presence import Presence
from walytis_vault.domain.errors import ConflictError, StorageError
from walytis_vault.domain.ids import ContentId, Root

NOWHERE: Final = 0
IN_BLOB: Final = 1
IN_PACK: Final = 2
INDEX_VERSION: Final = "1"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents (
    content_id BLOB PRIMARY KEY,
    slot INTEGER,
    place INTEGER NOT NULL,
    pack INTEGER,
    offset INTEGER,
    ciphertext_length INTEGER,
    root BLOB
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS contents_by_pack ON contents (pack) WHERE pack IS NOT NULL;
CREATE TABLE IF NOT EXISTS partials (
    content_id BLOB PRIMARY KEY, root BLOB NOT NULL, ciphertext_length INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped (content_id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost (content_id BLOB, part TEXT, PRIMARY KEY (content_id, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgetting (content_id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (content_id BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_HAS_BYTES: Final = (
    "SELECT 1 FROM contents WHERE content_id = ? AND place <> ?"
    " AND NOT EXISTS (SELECT 1 FROM forgetting WHERE content_id = ?)"
    " AND NOT EXISTS (SELECT 1 FROM forgotten WHERE content_id = ?)"
)
_IS_AVAILABLE: Final = (
    f"{_HAS_BYTES} AND slot IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM lost WHERE lost.content_id = contents.content_id AND part = 'key')"
)
_BYTES_ARE_BACK: Final = (
    "DELETE FROM partials WHERE content_id = ?",
    "DELETE FROM dropped WHERE content_id = ?",
    "DELETE FROM lost WHERE content_id = ? AND part = 'bytes'",
)
_KEY_IS_BACK: Final = "DELETE FROM lost WHERE content_id = ? AND part = 'key'"
_COLUMNS: Final = "content_id, slot, place, pack, offset, ciphertext_length, root"


class Row(msgspec.Struct, frozen=True):
    """What the index knows of one content."""

    content_id: ContentId
    slot: int | None = None
    place: int = NOWHERE
    range: PackRange | None = None
    ciphertext_length: int | None = None
    root: Root | None = None


class StoreIndex:
    """Typed access to the index database."""

    def __init__(self, path: Path, vault_id: str) -> None:
        """Open or create it. Raises StorageError; ConflictError when it belongs to another vault."""
        self.database = Database(path)
        self.presence = Presence(self.database)
        self.keyless: set[ContentId] = set()
        """Contents whose slot holds no key, or a wrong one, as far as somebody looked. The store's lock guards it."""
        with self.database.transaction() as connection:
            connection.execute(_SCHEMA)
            known = dict(connection.execute("SELECT name, value FROM meta"))
            if not known:
                rows = (("version", INDEX_VERSION), ("vault_id", vault_id))
                connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            elif known.get("version") != INDEX_VERSION:
                raise StorageError(f"the content index has version {known.get('version')}: use another walytis-vault")
            elif known.get("vault_id") != vault_id:
                raise ConflictError("this content store belongs to another vault: check the home folder")
            found = connection.execute("SELECT content_id FROM lost WHERE part = 'key'")
            self.keyless.update(ContentId(i) for (i,) in found)

    def get(self, content_id: ContentId) -> Row | None:
        """The row of one content."""
        return self.look_up([content_id])[0][0]

    def look_up(self, content_ids: Sequence[ContentId]) -> list[tuple[Row | None, bool]]:
        """For each content (at most 512) its row, and whether forgetting it has begun or is done."""
        marks = ",".join("?" * len(content_ids))
        rows_sql = f"SELECT {_COLUMNS} FROM contents WHERE content_id IN ({marks})"
        gone_sql = " UNION ALL ".join(
            f"SELECT content_id FROM {table} WHERE content_id IN ({marks})" for table in ("forgetting", "forgotten")
        )
        with self.database.read() as connection:
            rows = {row.content_id: row for row in map(_row, connection.execute(rows_sql, content_ids))}
            gone = {i for (i,) in connection.execute(gone_sql, (*content_ids, *content_ids))}
        return [(rows.get(i), i in gone) for i in content_ids]

    def get_many(self, content_ids: Sequence[ContentId]) -> list[Row]:
        """The rows of those that have one."""
        return [row for row, _ in self.look_up(content_ids) if row is not None]

    def put_in(self, connection: apsw.Connection, rows: Sequence[Row]) -> None:
        """Insert or replace rows, inside a transaction of the caller."""
        connection.executemany(
            f"INSERT OR REPLACE INTO contents ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    r.content_id,
                    r.slot,
                    r.place,
                    r.range.pack if r.range else None,
                    r.range.offset if r.range else None,
                    r.ciphertext_length,
                    r.root,
                )
                for r in rows
            ],
        )

    def content_ids(self) -> list[ContentId]:
        """Every content of which anything is here, ascending."""
        with self.database.read() as connection:
            return [ContentId(i) for (i,) in connection.execute("SELECT content_id FROM contents ORDER BY 1")]

    def slots(self) -> list[int]:
        """Every slot in use."""
        with self.database.read() as connection:
            return [s for (s,) in connection.execute("SELECT slot FROM contents WHERE slot IS NOT NULL")]

    def pack_ends(self) -> list[tuple[int, int, int]]:
        """For each pack: number, end of the last range, live bytes."""
        sql = (
            "SELECT pack, max(offset + ciphertext_length), sum(ciphertext_length) FROM contents "
            "WHERE pack IS NOT NULL GROUP BY pack"
        )
        with self.database.read() as connection:
            return [(int(p), int(e), int(n)) for p, e, n in connection.execute(sql)]

    def in_pack(self, pack: int) -> list[Row]:
        """The contents of one pack, in the order in which they lie."""
        sql = f"SELECT {_COLUMNS} FROM contents WHERE pack = ? ORDER BY offset"
        with self.database.read() as connection:
            return [_row(found) for found in connection.execute(sql, (pack,))]

    def in_blobs(self) -> dict[str, int]:
        """Content ids (hex) that have a blob file, with their ciphertext length."""
        sql = "SELECT content_id, ciphertext_length FROM contents WHERE place = ?"
        with self.database.read() as connection:
            return {bytes(i).hex(): int(n) for i, n in connection.execute(sql, (IN_BLOB,))}

    def lose_bytes(self, content_ids: Iterable[ContentId], *, noted: bool = False) -> None:
        """Record that the ciphertext of these is not here; their keys stay.

        Args:
            noted: it was here, and is lost: the owner is to hear of it.
        """
        sql = "UPDATE contents SET place = 0, pack = NULL, offset = NULL WHERE content_id = ?"
        ids = [(i,) for i in content_ids]
        with self.database.transaction() as connection:
            connection.executemany(sql, ids)
            if noted:
                connection.executemany("INSERT OR IGNORE INTO lost VALUES (?, 'bytes')", ids)
                connection.executemany("DELETE FROM dropped WHERE content_id = ?", ids)
        self.presence.note([i for (i,) in ids])

    def begin_drop(self, content_id: ContentId) -> None:
        """From this commit on the bytes count as not here, and nobody fetches them unasked."""
        with self.database.transaction() as connection:
            connection.execute("UPDATE contents SET place = 0 WHERE content_id = ?", (content_id,))
            connection.execute("DELETE FROM partials WHERE content_id = ?", (content_id,))
            connection.execute("INSERT OR IGNORE INTO dropped VALUES (?)", (content_id,))
            connection.execute("DELETE FROM lost WHERE content_id = ? AND part = 'bytes'", (content_id,))
        self.presence.note([content_id])

    def half_dropped(self) -> list[Row]:
        """Contents whose bytes count as not here, but whose place in a pack is not overwritten yet."""
        sql = (
            f"SELECT {_COLUMNS} FROM contents WHERE content_id IN (SELECT content_id FROM dropped)"
            " AND pack IS NOT NULL AND place = 0"
        )
        with self.database.read() as connection:
            return [_row(found) for found in connection.execute(sql)]

    def end_drop(self, content_ids: Iterable[ContentId]) -> None:
        """Where the bytes were is overwritten."""
        sql = "UPDATE contents SET pack = NULL, offset = NULL WHERE content_id = ? AND place = 0"
        with self.database.transaction() as connection:
            connection.executemany(sql, [(i,) for i in content_ids])

    def is_dropped(self, content_id: ContentId) -> bool:
        """Whether the bytes were dropped here and have not come back."""
        sql = "SELECT 1 FROM dropped WHERE content_id = ?"
        with self.database.read() as connection:
            return connection.execute(sql, (content_id,)).fetchone() is not None

    def lose_slots(self, capacity: int) -> None:
        """Record that keys in slots from `capacity` on are not here (the slot file was cut)."""
        with self.database.transaction() as connection:
            rows: list[Any] = connection.execute(
                "SELECT content_id FROM contents WHERE slot >= ?", (capacity,)
            ).fetchall()
            connection.executemany("INSERT OR IGNORE INTO lost VALUES (?, 'key')", rows)
            connection.executemany("UPDATE contents SET slot = NULL WHERE content_id = ?", rows)
        self.keyless.update(ContentId(i) for (i,) in rows)
        self.presence.note(i for (i,) in rows)

    def note_key(self, content_id: ContentId, *, lost: bool) -> None:
        """Note that a content's key is lost, or not lost after all."""
        change = "INSERT OR IGNORE INTO lost VALUES (?, 'key')" if lost else _KEY_IS_BACK
        with self.database.transaction() as connection:
            connection.execute(change, (content_id,))
        (self.keyless.add if lost else self.keyless.discard)(content_id)
        self.presence.note([content_id])

    def back_in(self, connection: apsw.Connection, *, keys: Sequence[ContentId], bodies: Sequence[ContentId]) -> None:
        """Keys and ciphertexts came back, or came at last, inside a transaction of the caller."""
        connection.executemany(_KEY_IS_BACK, [(i,) for i in keys])
        for sql in _BYTES_ARE_BACK:
            connection.executemany(sql, [(i,) for i in bodies])

    def lost_bytes(self, content_id: ContentId) -> bool:
        """Whether the ciphertext was lost and has not come back."""
        sql = "SELECT 1 FROM lost WHERE content_id = ? AND part = 'bytes'"
        with self.database.read() as connection:
            return connection.execute(sql, (content_id,)).fetchone() is not None

    def lost(self) -> int:
        """Contents whose bytes or keys were lost and have not come back (a count)."""
        with self.database.read() as connection:
            return int(_one(connection, "SELECT count(DISTINCT content_id) FROM lost")[0])

    def partial(self, content_id: ContentId) -> tuple[Root, int] | None:
        """Root and length of a ciphertext that is still coming."""
        sql = "SELECT root, ciphertext_length FROM partials WHERE content_id = ?"
        with self.database.read() as connection:
            found = connection.execute(sql, (content_id,)).fetchone()
        return None if found is None else (Root(found[0]), int(found[1]))

    def partials(self) -> list[ContentId]:
        """Contents that are still coming."""
        with self.database.read() as connection:
            return [ContentId(i) for (i,) in connection.execute("SELECT content_id FROM partials")]

    def begin_partial(self, content_id: ContentId, root: Root, ciphertext_length: int) -> None:
        """Note a ciphertext that begins to come."""
        with self.database.transaction() as connection:
            row = (content_id, root, ciphertext_length)
            connection.execute("INSERT OR REPLACE INTO partials VALUES (?, ?, ?)", row)

    def end_partial(self, content_id: ContentId) -> None:
        """Drop the note."""
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM partials WHERE content_id = ?", (content_id,))

    def has_bytes(self, content_id: ContentId) -> bool:
        """Whether a whole ciphertext is here and not being forgotten. Asked for every row of a list: one statement."""
        with self.database.read() as connection:
            return connection.execute(_HAS_BYTES, (content_id, NOWHERE, content_id, content_id)).fetchone() is not None

    def is_available(self, content_id: ContentId) -> bool:
        """As `has_bytes`, and whether its key is here, as far as is known."""
        with self.database.read() as connection:
            found = connection.execute(_IS_AVAILABLE, (content_id, NOWHERE, content_id, content_id))
            return found.fetchone() is not None

    def unsettled(self, content_ids: Sequence[ContentId]) -> list[ContentId]:
        """Those (of at most 512) that are neither available, nor forgotten, nor dropped."""
        marks = ",".join(f"?{n}" for n in range(1, len(content_ids) + 1))
        sql = (
            f"SELECT content_id FROM contents WHERE content_id IN ({marks}) AND place <> {NOWHERE} AND slot IS NOT NULL"
            " AND NOT EXISTS (SELECT 1 FROM forgetting WHERE forgetting.content_id = contents.content_id)"
            " AND NOT EXISTS (SELECT 1 FROM lost WHERE lost.content_id = contents.content_id AND part = 'key')"
            f" UNION ALL SELECT content_id FROM forgotten WHERE content_id IN ({marks})"
            f" UNION ALL SELECT content_id FROM dropped WHERE content_id IN ({marks})"
        )
        with self.database.read() as connection:
            settled = {bytes(i) for (i,) in connection.execute(sql, content_ids)}
        return [i for i in content_ids if i not in settled]

    def is_forgotten(self, content_id: ContentId) -> bool:
        """Whether the tombstone stands."""
        sql = "SELECT 1 FROM forgotten WHERE content_id = ?"
        with self.database.read() as connection:
            return connection.execute(sql, (content_id,)).fetchone() is not None

    def is_gone(self, content_id: ContentId) -> bool:
        """Whether forgetting has begun or is done."""
        return self.look_up([content_id])[0][1]

    def mark_forgetting(self, content_ids: Iterable[ContentId]) -> None:
        """Step 1 of forgetting: from this commit on the contents are gone for readers."""
        ids = list(content_ids)
        with self.database.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO forgetting VALUES (?)", [(i,) for i in ids])
        self.presence.note(ids)

    def gone_ids(self) -> set[bytes]:
        """Every content whose forgetting has begun or is done."""
        with self.database.read() as connection:
            sql = "SELECT content_id FROM forgotten UNION SELECT content_id FROM forgetting"
            rows: list[Any] = connection.execute(sql).fetchall()
        return {bytes(row[0]) for row in rows}

    def unfinished_forgetting(self) -> list[ContentId]:
        """Contents whose forgetting began and has no tombstone yet."""
        with self.database.read() as connection:
            return [ContentId(i) for (i,) in connection.execute("SELECT content_id FROM forgetting")]

    def delete_rows(self, content_ids: Iterable[ContentId]) -> None:
        """Step 4 of forgetting: where bytes and key were is of no more use."""
        ids = [(i,) for i in content_ids]
        with self.database.transaction() as connection:
            connection.executemany("DELETE FROM contents WHERE content_id = ?", ids)
            connection.executemany("DELETE FROM partials WHERE content_id = ?", ids)
            connection.executemany("DELETE FROM dropped WHERE content_id = ?", ids)
            connection.executemany("DELETE FROM lost WHERE content_id = ?", ids)
        self.keyless.difference_update(i for (i,) in ids)

    def bury(self, content_ids: Iterable[ContentId]) -> None:
        """Step 5 of forgetting: the tombstone."""
        ids = [(i,) for i in content_ids]
        with self.database.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO forgotten VALUES (?)", ids)
            connection.executemany("DELETE FROM forgetting WHERE content_id = ?", ids)
        self.presence.note([i for (i,) in ids])

    def counts(self) -> tuple[int, int, int, int]:
        """Contents with bytes, bytes of blobs, keys, tombstones."""
        with self.database.read() as connection:
            contents, blobs, keys = _one(
                connection,
                "SELECT count(nullif(place, 0)), coalesce(sum(iif(place = 1, ciphertext_length, 0)), 0), count(slot)"
                " FROM contents",
            )
            (tombstones,) = _one(connection, "SELECT count(*) FROM forgotten")
        return contents, blobs, keys, tombstones


def _one(connection: apsw.Connection, sql: str) -> Sequence[Any]:
    row: Any = connection.execute(sql).fetchone()
    return tuple(row)


def _row(found: Sequence[Any]) -> Row:
    content_id, slot, place, pack, offset, length, root = found
    where = None if pack is None else PackRange(pack, offset, length)
    return Row(ContentId(content_id), slot, place, where, length, None if root is None else Root(root))
