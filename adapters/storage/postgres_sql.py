"""The views' SQL and values as PostgreSQL takes them: `?` becomes `$1`, many rows become arrays, text keeps its NULs.

What SQLite and PostgreSQL share is passed on as it is (projections/store.py says what that is). It opens no connection;
only values, never names, come from outside, and values are always bound.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Final

import msgspec
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper, NumericBinaryLoader
from psycopg.types.string import StrBinaryDumper

from walytis_vault.projections.store import ColumnType

MANY: Final = 1000
"""Rows of one statement (a count)."""
TYPES: Final[dict[ColumnType, str]] = {"integer": "bigint", "blob": "bytea", "text": 'text COLLATE "C"'}
"""Text compares byte by byte, as in SQLite."""
_ARRAYS: Final[dict[ColumnType, tuple[int, str]]] = {
    "integer": (20, "bigint[]"),
    "blob": (17, "bytea[]"),
    "text": (25, "text[]"),
}
_PLACES: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\?")
_INSERT: Final = re.compile(
    r"\s*INSERT\s+INTO\s+(?P<table>[a-z0-9_]+)\s*\((?P<columns>[a-z0-9_,\s]+)\)\s*VALUES\s*\((?P<marks>[?,\s]+)\)"
    r"(?P<tail>\s*(?:ON\s+CONFLICT\s*(?:\((?P<target>[a-z0-9_,\s]+)\)\s*)?DO\s+(?P<action>NOTHING|UPDATE)\b.*)?)\Z",
    re.DOTALL,
)
_WRITES: Final = re.compile(r"\s*(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+([a-z0-9_]+)")


class Insert(msgspec.Struct, frozen=True):
    """An INSERT of plain values, taken apart."""

    table: str
    columns: tuple[str, ...]
    tail: str
    """From ON CONFLICT on."""
    key: tuple[int, ...]
    """Which columns say that two rows meet in DO UPDATE; empty where rows of one statement may meet."""


class Statement(msgspec.Struct, frozen=True):
    """A statement as PostgreSQL takes it."""

    sql: str
    writes: str | None
    """The table that it writes to."""
    insert: Insert | None


@lru_cache(maxsize=2000)
def translate(sql: str) -> Statement:
    """Number the placeholders and look what kind of statement it is."""
    numbers = iter(range(1, sql.count("?") + 1))
    numbered = _PLACES.sub(lambda found: f"${next(numbers)}" if found[0] == "?" else found[0], sql)
    writes = _WRITES.match(sql)
    return Statement(numbered, writes[1] if writes else None, _taken_apart(sql))


def _taken_apart(sql: str) -> Insert | None:
    found = _INSERT.match(sql)
    if found is None or "?" in found["tail"]:
        return None
    columns = tuple(name.strip() for name in found["columns"].split(","))
    if found["marks"].count("?") != len(columns):
        return None
    key: tuple[int, ...] = ()
    if found["action"] == "UPDATE":
        target = [name.strip() for name in (found["target"] or "").split(",")]
        if not set(target) <= set(columns):
            return None
        key = tuple(columns.index(name) for name in target)
    return Insert(found["table"], columns, found["tail"], key)


def index_name(table: str, what: str) -> str:
    """The name of an index, within PostgreSQL's 63 bytes, by what it is."""
    return f"{table[:45]}_i{hashlib.sha256(f'{table} {what}'.encode()).hexdigest()[:12]}"


def in_bulk(insert: Insert, types: Sequence[ColumnType]) -> str:
    """The same INSERT over one array for each column."""
    arrays = ", ".join(f"${n}::{_ARRAYS[kind][1]}" for n, kind in enumerate(types, start=1))
    return f"INSERT INTO {insert.table} ({', '.join(insert.columns)}) SELECT * FROM unnest({arrays}){insert.tail}"


def parts(rows: Iterable[Sequence[Any]], key: Sequence[int]) -> Iterator[list[Sequence[Any]]]:
    """Rows in their order, cut where there are many, or where one meets another under `key`.

    PostgreSQL refuses to update a row twice in one statement; one after the other it is what was asked for.
    """
    part: list[Sequence[Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        mine = tuple(row[n] for n in key)
        if len(part) == MANY or (key and mine in seen):
            yield part
            part, seen = [], set()
        part.append(row)
        seen.add(mine)
    if part:
        yield part


class Array(msgspec.Struct, frozen=True):
    """A column of values, packed as PostgreSQL sends arrays."""

    data: bytes


def packed(values: Sequence[Any], kind: ColumnType) -> Array:
    """Pack a column. Raises OverflowError or TypeError for what the column cannot hold, as SQLite's wrapper does."""
    if kind == "integer" and None not in values:
        try:
            body = struct.pack(">" + "iq" * len(values), *chain.from_iterable(zip(repeat(8), values)))
        except struct.error as e:
            raise OverflowError("a whole number does not fit into 64 bits") from e
    else:
        body = b"".join(chain.from_iterable(map(_PACKERS[kind], values)))
    head = struct.pack(">iiIii", 1, 1, _ARRAYS[kind][0], len(values), 1)
    return Array(head + body)


def _packer(to_bytes: Callable[[Any], bytes]) -> Callable[[Any], tuple[bytes, bytes]]:
    length = struct.Struct(">i").pack

    def pack(value: Any) -> tuple[bytes, bytes]:
        if value is None:
            return b"\xff\xff\xff\xff", b""
        raw = to_bytes(value)
        return length(len(raw)), raw

    return pack


def escaped(text: str) -> str:
    """PostgreSQL's text holds no NUL: write it so that texts sort as before."""
    if "\x00" in text or "\x01" in text:
        return text.replace("\x01", "\x01\x02").replace("\x00", "\x01\x01")
    return text


def unescaped(text: str) -> str:
    """Back from `escaped`."""
    return text.replace("\x01\x01", "\x00").replace("\x01\x02", "\x01") if "\x01" in text else text


_PACKERS: Final[dict[ColumnType, Callable[[Any], tuple[bytes, bytes]]]] = {
    "integer": _packer(lambda value: checked(value).to_bytes(8, "big", signed=True)),
    "blob": _packer(lambda value: bytes(memoryview(value))),
    "text": _packer(lambda value: escaped(value).encode()),
}


def checked(value: int) -> int:
    """A whole number of 64 bits. Raises OverflowError for any other."""
    if -(2**63) <= value < 2**63:
        return int(value)
    raise OverflowError("a whole number does not fit into 64 bits")


# How psycopg is to send and read values


class _Int(Int8BinaryDumper):
    def dump(self, obj: Any) -> Buffer | None:
        return super().dump(checked(obj))


class _Text(StrBinaryDumper):
    def dump(self, obj: str) -> Buffer | None:
        return super().dump(escaped(obj))


class _ArrayDumper(Dumper):
    """Sends what was packed before; the statement names the type."""

    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


class _TextLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return unescaped(str(data, "utf-8"))


class _Number(NumericBinaryLoader):
    """`numeric` (sums, averages) as SQLite gives it: a whole number or a float."""

    def load(self, data: Buffer) -> Any:
        found = super().load(data)
        return int(found) if found.as_tuple().exponent == 0 else float(found)


class _Truth(Loader):
    """A truth value as SQLite gives it: 1 or 0."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int(bytes(data) != b"\x00")


def adapt(adapters: AdaptersMap) -> None:
    """Set up a connection's conversions."""
    for kind in (int, bool):
        adapters.register_dumper(kind, _Int)
    adapters.register_dumper(str, _Text)
    adapters.register_dumper(Array, _ArrayDumper)
    adapters.register_loader("text", _TextLoader)
    adapters.register_loader("bool", _Truth)
    adapters.register_loader("numeric", _Number)
