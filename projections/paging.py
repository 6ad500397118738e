"""Cursors, times and filter values as they come from outside: read strictly, or refused with a clear sentence."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from walytis_vault.domain.errors import MisuseError
from walytis_vault.domain.events import Origin
from walytis_vault.domain.forgetting import Order

MAX_CURSOR: Final = 512
"""Characters of a cursor."""
MAX_LIMIT: Final = 1_000_000
"""Rows of one page (a count)."""
_YEAR_9999_MS: Final = 253_402_300_799_999


class _Cursor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    view: str
    sort: str
    at: list[int | bytes]


def cursor_text(view: str, sort: str, at: list[int | bytes]) -> str:
    """Write where a page ended."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(_Cursor(view, sort, at))).decode().rstrip("=")


def read_cursor(text: object, view: str, sort: str, kinds: tuple[type, ...]) -> list[int | bytes]:
    """Read a cursor of the same query. Raises MisuseError for anything else."""
    if not isinstance(text, str) or len(text) > MAX_CURSOR:
        raise MisuseError("not a cursor: pass the one that came with the page before")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        cursor = msgspec.msgpack.decode(raw, type=_Cursor, strict=True)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as e:
        raise MisuseError("not a cursor: pass the one that came with the page before") from e
    if (cursor.view, cursor.sort) != (view, sort):
        raise MisuseError(f"this cursor belongs to view {cursor.view!r} sorted by {cursor.sort!r}")
    fits = len(cursor.at) == len(kinds) and all(isinstance(v, k) for v, k in zip(cursor.at, kinds, strict=True))
    if not fits:
        raise MisuseError("not a cursor: pass the one that came with the page before")
    if any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in cursor.at):
        raise MisuseError("not a cursor: pass the one that came with the page before")
    return cursor.at


def dated_cursor(position: int, cursor: str) -> str:
    """A cursor of a view of the past, with the position up to which that was folded."""
    return f"{position}.{cursor}"


def read_dated_cursor(text: str | None, position: int) -> tuple[int, str | None]:
    """Back from `dated_cursor`; without a cursor the position given. Raises MisuseError."""
    if text is None:
        return position, None
    at, dot, cursor = str(text).partition(".")
    if not dot or not (at.isascii() and at.isdigit() and len(at) <= 18) or int(at) > position:
        raise MisuseError("not a cursor: pass the one that came with the page before")
    return int(at), cursor


def check_limit(limit: int | None) -> int | None:
    """A page size. Raises MisuseError unless it is None or from 1 to MAX_LIMIT."""
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_LIMIT:
        raise MisuseError(f"limit is a whole number from 1 to {MAX_LIMIT}, or None for all")
    return limit


def iso(time_ms: int) -> str:
    """Milliseconds since 1970 as ISO 8601 text (UTC); times beyond the year 9999 are cut there."""
    moment = datetime.fromtimestamp(min(time_ms, _YEAR_9999_MS) / 1000, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def order_bytes(order: Order) -> bytes:
    """An order as bytes that sort alike: 8 bytes depth, 32 bytes batch id, 8 bytes index."""
    return order[0].to_bytes(8, "big") + order[1] + order[2].to_bytes(8, "big")


def order_of(origin: Origin) -> bytes:
    """The order of an event as bytes: `order_bytes(origin.order)`."""
    return origin.depth.to_bytes(8, "big") + origin.batch_id + origin.index.to_bytes(8, "big")


def order_from(raw: bytes) -> Order:
    """Back from `order_bytes`."""
    return int.from_bytes(raw[:8], "big"), raw[8:-8], int.from_bytes(raw[-8:], "big")


def hex_id(name: str, value: object) -> bytes:
    """A filter value that is an id: 32 hex digits, or 16 bytes."""
    if isinstance(value, bytes) and len(value) == 16:
        return value
    if isinstance(value, str) and len(value) == 32:
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise MisuseError(f"filter {name} takes an id of 32 hex digits, not {str(value)[:40]!r}")


def text(name: str, value: object) -> str:
    """A filter value that is text."""
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise MisuseError(f"filter {name} takes a text, not {str(value)[:40]!r}")
    return value


def count(name: str, value: object) -> int:
    """A filter value that is a whole number of at least 0."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise MisuseError(f"filter {name} takes a whole number, not {str(value)[:40]!r}")
    return value


def flag(name: str, value: object) -> bool:
    """A filter value that is yes or no."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise MisuseError(f"filter {name} takes true or false, not {str(value)[:40]!r}")


def moment(name: str, value: object) -> int:
    """A filter value that is a time: milliseconds since 1970, or ISO 8601 (UTC when no zone is given)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return count(name, value)
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError as e:
        raise MisuseError(f"filter {name} takes a time such as 2026-01-31T12:00:00Z, not {str(value)[:40]!r}") from e
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return max(0, round(parsed.timestamp() * 1000))


def choice(name: str, value: object, options: tuple[str, ...]) -> str:
    """A filter value that is one of a few words."""
    if value not in options:
        raise MisuseError(f"{name} is one of {', '.join(options)}; not {str(value)[:40]!r}")
    return str(value)


Reader = Callable[[str, Any], Any]
