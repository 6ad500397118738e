"""Rows of views as frozen structs: one class for each view and set of fields, made when first seen.

Fields are named as in `--json`; `as_dict` gives them back. Lists come as tuples, so that a row never changes.
"""

from __future__ import annotations

import keyword
import re
import threading
from collections.abc import Iterator
from typing import Any, cast

import msgspec


class Row(msgspec.Struct, frozen=True):
    """Base of all rows. Fields are attributes; `row["field"]` works as well."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in the view's order."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    def __getitem__(self, name: str) -> Any:
        """The field of this name. Raises KeyError."""
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> Iterator[str]:
        """The names of the fields: `dict(row)` works."""
        return iter(self.__struct_fields__)

    def __getattr__(self, name: str) -> Any:
        """Only reached for fields that the row does not have."""
        raise AttributeError(f"a row of {type(self).__name__} has no field {name!r}")


class RowPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some rows of a query, and where it goes on."""

    rows: tuple[Row, ...]
    cursor: str | None
    """Pass it to get what follows; None at the end. It stays valid while rows are added."""
    position: int
    """Position of the view when it was read."""


_CLASSES_MOST = 256
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TAKEN = frozenset({"as_dict", "keys"})
_classes: dict[tuple[str, tuple[str, ...]], type[Row]] = {}
_lock = threading.Lock()


def make_row(view: str, fields: dict[str, Any]) -> Row:
    """A row of a view from its fields. One whose name cannot be an attribute is called `field_N_`."""
    key = (view, tuple(fields))
    cls = _classes.get(key)
    if cls is None:
        cls = _make_class(key)
    return cls(*(_frozen(value) for value in fields.values()))


def _make_class(key: tuple[str, tuple[str, ...]]) -> type[Row]:
    view, names = key
    safe: list[str] = []
    for number, name in enumerate(names):
        plain = _PLAIN.fullmatch(name) and not keyword.iskeyword(name) and name not in _TAKEN
        safe.append(name if plain and name not in safe else f"field_{number}_")
    title = "".join(c for c in view.title() if c.isascii() and c.isalnum()) or "View"
    fields = [(name, Any) for name in safe]
    made = cast(type[Row], msgspec.defstruct(f"{title}Row", fields, bases=(Row,), frozen=True))
    with _lock:
        if len(_classes) >= _CLASSES_MOST:
            _classes.clear()
        return _classes.setdefault(key, made)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(v) for v in value)
    return value
