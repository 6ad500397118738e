"""What packages of strangers may offer as views: a good one, and several that cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.store import Connection, Table


class AuthorRow(msgspec.Struct, frozen=True, kw_only=True):
    """How often a member published."""

    author: str
    count: int


class Authors(View):
    """The example of docs/views.md: publications by author."""

    name = "authors"
    row = AuthorRow
    tables = (Table(name="rows", columns={"author": "blob", "n": "integer"}, primary_key=("author",)),)

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.handlers = {ev.ContentPublished: self._published}

    def _published(self, connection: Connection, event: ev.Event, origin: ev.Origin, position: int) -> None:
        key, table = origin.author.encode(), self.t("rows")
        connection.execute(
            f"INSERT INTO {table} (author, n) VALUES (?, 1) ON CONFLICT (author) DO UPDATE SET n = {table}.n + 1",
            (key,),
        )
        self.touch(key, position)

    def _rows(self, low: bytes = b"", high: bytes | None = None) -> dict[bytes, AuthorRow]:
        with self.view.store.read() as connection:
            found = connection.execute(f"SELECT author, n FROM {self.t('rows')} WHERE author >= ?", (low,))
            rows = {bytes(a): AuthorRow(author=bytes(a).decode(), count=int(n)) for a, n in found}
        return {k: rows[k] for k in sorted(rows) if high is None or k < high}

    def page(self, request: Request) -> Page:
        self.check_filters(request.filters)
        return Page(rows=tuple(self._rows().values()))

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        rows = self._rows()
        return {k: rows[k] for k in keys if k in rows}

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        for key, row in self._rows(low, high).items():
            yield key, msgspec.msgpack.encode(row)


class Taken(Authors):
    """Takes the name of one of ours."""

    name = "ballots"


class BadName(Authors):
    """Its name cannot be a table's."""

    name = "Robert'); --"


class Rowless(Authors):
    """Does not say what its rows are."""

    name = "rowless"
    row = dict  # type: ignore[assignment]


NOT_A_VIEW = 5
