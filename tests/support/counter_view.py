"""A view like a third party's, which fails when told to, for tests of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import msgspec

from support.view_world import at, published
from walytis_vault.domain import events as ev
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.store import Connection, Table


class CounterRow(msgspec.Struct, frozen=True, kw_only=True):
    """How often an author published."""

    author: str
    count: int


class Counter(View):
    """A third-party view: publications by author. Fails while `broken` says so."""

    name = "counter"
    row = CounterRow
    tables = (Table(name="rows", columns={"author": "blob", "n": "integer"}, primary_key=("author",)),)
    broken: ClassVar[set[bytes]] = set()

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.handlers = {ev.ContentPublished: self._published}

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        key = origin.author.encode()
        connection.execute(
            f"INSERT INTO {self.t('rows')} (author, n) VALUES (?, 1)"
            f" ON CONFLICT (author) DO UPDATE SET n = {self.t('rows')}.n + 1",
            (key,),
        )
        self.touch(key, position)
        if event.content_id in self.broken:
            raise ValueError("cannot count this one")

    def _rows(self, connection: Connection) -> dict[bytes, msgspec.Struct]:
        found = connection.execute(f"SELECT author, n FROM {self.t('rows')} ORDER BY author")
        return {bytes(a): CounterRow(author=bytes(a).decode(), count=int(n)) for a, n in found}

    def page(self, request: Request) -> Page:
        with self.view.store.read() as connection:
            return Page(rows=tuple(self._rows(connection).values()))

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        with self.view.store.read() as connection:
            return {k: r for k, r in self._rows(connection).items() if k in keys}

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        for key, row in self._rows(connection).items():
            if key >= low and (high is None or key < high):
                yield key, msgspec.msgpack.encode(row)


class Ordered(Counter):
    """The same, but it stops at the first event that fails."""

    name = "ordered"
    order_free = False


def counts(host_query: Callable[..., Page], view: str = "counter") -> dict[str, int]:
    return {r.author: r.count for r in host_query(view).rows if isinstance(r, CounterRow)}


def history(count: int, start: int = 0) -> list[ev.Recorded]:
    return [at(published(i), f"did:{'ab'[i % 2]}", i + 2) for i in range(start, start + count)]
