"""The view `catalogue`: one row for each content that was ever published, and how it stands now.

Folds publications, retractions, revisions and ballots by the rules of domain/contents.py. Names, media types,
labels and true sizes stay sealed here and are opened only while a query runs. Columns: docs/views.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Node, Verdict, is_revision_of, judge, supersedes
from walytis_vault.domain.forgetting import ballot_of
from walytis_vault.projections import book as ballot_book
from walytis_vault.projections import names
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.book import STANDING, Book
from walytis_vault.projections.catalogue_plan import FILTERS
from walytis_vault.projections.catalogue_query import CatalogueQuery, CatalogueRow
from walytis_vault.projections.catalogue_rows import COLUMNS, ROWS, SEALED, TOGGLES, Stored, stored_row
from walytis_vault.projections.names import Dids
from walytis_vault.projections.paging import order_of
from walytis_vault.projections.search import Place
from walytis_vault.projections.store import Connection, Table, Value, one

EARLY: Final = 50_000
"""Contents remembered as expected (a count); with more, every publication is looked up."""


class Catalogue(View):
    """See the module."""

    name = "catalogue"
    version: ClassVar[int] = 3
    row: ClassVar[type[msgspec.Struct]] = CatalogueRow
    tables: ClassVar[tuple[Table, ...]] = (ROWS, SEALED, TOGGLES, names.TABLE, *ballot_book.TABLES)
    filters: ClassVar[frozenset[str]] = frozenset(FILTERS)

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.dids = Dids(self.t("dids"))
        self.book = Book(self, self.local.history)
        self.query = CatalogueQuery(self)
        self._early: set[bytes] | None = None
        """Contents that something was said about before they arrived; None until it is looked up."""
        self._new: dict[bytes, tuple[ev.ContentPublished, ev.Origin, int]] = {}
        """Originals that nothing was said about before, collected to be written together."""
        self.handlers = {
            ev.ContentPublished: self._published,
            ev.ContentRetracted: self._toggled,
            ev.ContentRestored: self._toggled,
            ev.ForgettingProposed: self._balloted,
            ev.ForgettingConsented: self._balloted,
            ev.ForgettingRefused: self._balloted,
            ev.ForgettingWithdrawn: self._balloted,
            ev.VaultFounded: self._membership,
            ev.MemberAdmitted: self._membership,
            ev.MemberRemoved: self._membership,
        }
        rows, sealed, toggles = self.t("rows"), self.t("sealed"), self.t("toggles")
        marks = ", ".join("?" * len(ROWS.columns))
        self._insert = f"INSERT INTO {rows} ({COLUMNS}, kept) VALUES ({marks})"
        self._by_id = f"SELECT {COLUMNS} FROM {rows} WHERE content_id = ?"
        self._insert_new = f"{self._insert} ON CONFLICT (content_id) DO NOTHING"
        self._between = f"SELECT position FROM {rows} WHERE position BETWEEN ? AND ?"
        missing = f"NOT EXISTS (SELECT 1 FROM {rows} r WHERE r.content_id = e.content_id) LIMIT {EARLY + 1}"
        self._find_early = (
            f"SELECT content_id FROM {toggles} e WHERE {missing}",
            f"SELECT content_id FROM {self.t('asked')} e WHERE {missing}",
            f"SELECT revises FROM {rows} WHERE revises IS NOT NULL AND parent IS NULL LIMIT {EARLY + 1}",
        )
        self.rows_since = f"SELECT position, content_id FROM {rows} WHERE position > ? ORDER BY position LIMIT ?"
        self._children = f"SELECT {COLUMNS} FROM {rows} WHERE revises = ?"
        self._heads = f"SELECT {COLUMNS} FROM {rows} WHERE original = ? AND parent IS NOT NULL AND head = 1"
        self._seal = f"INSERT INTO {sealed} (position, sealed) VALUES (?, ?) ON CONFLICT DO NOTHING"
        self._unseal = f"DELETE FROM {sealed} WHERE position = ?"
        self._toggle = f"SELECT ord, hidden FROM {toggles} WHERE content_id = ? AND member = ?"
        self._set_toggle = (
            f"INSERT INTO {toggles} (content_id, member, ord, hidden) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (content_id, member) DO UPDATE SET ord = excluded.ord, hidden = excluded.hidden"
        )
        self._set_verdict = (
            f"UPDATE {rows} SET parent = ?, original = ?, expires_ms = ?, retracted = ?, forgetting = ?, head = ?,"
            " conflict = ? WHERE position = ?"
        )
        self._replace = (
            f"UPDATE {rows} SET ord = ?, author = ?, device = ?, time_ms = ?, padded = ?, root = ?, revises = ?,"
            " expires_own = ?, contested = 1 WHERE position = ?"
        )
        self._contest = f"UPDATE {rows} SET contested = 1 WHERE position = ?"

    def roll_back(self) -> None:
        """See `View.roll_back`."""
        super().roll_back()
        self._early = None
        self._new = {}
        self.dids.roll_back()
        self.book.roll_back()

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        content_id = event.content_id
        if event.revises is None and not self._is_early(connection, content_id) and content_id not in self._new:
            self._new[content_id] = event, origin, position
            self.touch_new(content_id, position)
            return
        known = self.load(connection, content_id)
        if known is not None:
            self._published_again(connection, event, origin, position, known)
            return
        parent = None
        if event.revises is not None:
            parent = self.load(connection, event.revises)
            if parent is not None and not (parent.author == origin.author and order_of(origin) > parent.ord):
                parent = None
        retracted = self._hidden(connection, content_id, origin.author) or (parent is not None and parent.retracted)
        standing = STANDING.index(self.book.standing(connection, content_id))
        if parent is not None:
            standing = max(standing, parent.forgetting)
        row = Stored(
            position=position,
            content_id=content_id,
            ord=order_of(origin),
            author=origin.author,
            device=origin.device,
            time_ms=origin.time_ms,
            padded=event.padded_length,
            root=event.root,
            revises=event.revises,
            parent=None if parent is None else parent.content_id,
            original=content_id if parent is None else parent.original,
            expires_own=event.expires_ms,
            expires_ms=event.expires_ms,
            retracted=retracted,
            forgetting=standing,
            head=not retracted and standing < 2,
            conflict=False,
            contested=False,
        )
        if parent is not None and row.head:
            row = self._supersede(connection, row, position)
        connection.execute(self._insert, (*self._columns(connection, row), *self.local.kept([content_id])))
        if parent is None and event.revises is not None:
            self._expect(event.revises)
        if standing < 2:
            connection.execute(self._seal, (position, event.descriptor))
        self.touch_new(content_id, position)
        children = [self._stored(connection, r).content_id for r in connection.execute(self._children, (content_id,))]
        if children:
            self._recompute(connection, [content_id, *children], position)

    def _published_again(
        self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int, known: Stored
    ) -> None:
        """Somebody used an id twice: the smaller order is the content, and the row says that it is contested."""
        order = order_of(origin)
        if order == known.ord:
            return
        if order < known.ord:
            author, device = self.dids.id(connection, origin.author), self.dids.id(connection, origin.device)
            connection.execute(
                self._replace,
                (
                    *(order, author, device, origin.time_ms, event.padded_length, event.root, event.revises),
                    *(event.expires_ms, known.position),
                ),
            )
            connection.execute(self._unseal, (known.position,))
            connection.execute(self._seal, (known.position, event.descriptor))
            self.query.search.again(event.content_id, Place(order, origin.time_ms, event.padded_length, known.position))
            if event.revises is not None:
                self._expect(event.revises)
        else:
            connection.execute(self._contest, (known.position,))
        self.touch(event.content_id, position)
        children = [
            self._stored(connection, r).content_id for r in connection.execute(self._children, (event.content_id,))
        ]
        self._recompute(connection, [event.content_id, *children, known.original], position)

    def _supersede(self, connection: Connection, row: Stored, position: int) -> Stored:
        """Put a new version on top of its family without loading the whole of it."""
        me = row.publication()
        top = [self._stored(connection, r) for r in connection.execute(self._heads, (row.original,))]
        first = self.load(connection, row.original)
        if first is not None and first.head:
            top.append(first)
        history = self.local.history
        head = not any(supersedes(other.publication(), me, history) for other in top)
        kept = [o for o in top if not supersedes(me, o.publication(), history)]
        conflict = len(kept) + head > 1
        for other in top:
            stays = other in kept
            if (other.head, other.conflict) != (stays, stays and conflict):
                self._write(connection, msgspec.structs.replace(other, head=stays, conflict=stays and conflict))
                self.touch(other.content_id, position)
        return msgspec.structs.replace(row, head=head, conflict=head and conflict)

    def _toggled(
        self, connection: Connection, event: ev.ContentRetracted | ev.ContentRestored, origin: ev.Origin, position: int
    ) -> None:
        order, hidden = order_of(origin), isinstance(event, ev.ContentRetracted)
        last = one(connection.execute(self._toggle, (event.content_id, origin.author)))
        if last is not None and bytes(last[0]) >= order:
            return
        connection.execute(self._set_toggle, (event.content_id, origin.author, order, int(hidden)))
        self._recompute(connection, [event.content_id], position)

    def _balloted(self, connection: Connection, event: ev.Event, origin: ev.Origin, position: int) -> None:
        ballot_id = ballot_of(event)
        if ballot_id is not None:
            changed = self.book.add(connection, ballot_id, event, origin)[1]
            self._recompute(connection, sorted(changed), position)

    def _membership(self, connection: Connection, event: ev.Event, _origin: ev.Origin, position: int) -> None:
        for _, changed in self.book.membership(connection, event).values():
            self._recompute(connection, sorted(changed), position)

    def _recompute(self, connection: Connection, seeds: Sequence[bytes], position: int) -> None:
        """Judge the families of these contents again and write what changed."""
        done: set[bytes] = set()
        for seed in seeds:
            if seed in done:
                continue
            root = self.load(connection, seed)
            while root is not None and (above := self._parent(connection, root)) is not None:
                root = above
            if root is None:
                self._expect(seed)
                continue
            family: dict[bytes, tuple[Stored, bytes | None]] = {root.content_id: (root, None)}
            waiting = [root]
            while waiting:
                parent = waiting.pop()
                for raw in list(connection.execute(self._children, (parent.content_id,))):
                    child = self._stored(connection, raw)
                    if is_revision_of(child.publication(), parent.publication()):
                        family[child.content_id] = (child, parent.content_id)
                        waiting.append(child)
            nodes = [
                Node(
                    publication=stored.publication(),
                    parent=above_id,
                    retracted=self._hidden(connection, stored.content_id, stored.author),
                    forgetting=self.book.standing(connection, stored.content_id),
                )
                for stored, above_id in family.values()
            ]
            for content_id, verdict in judge(nodes, self.local.history).items():
                done.add(content_id)
                stored, above_id = family[content_id]
                self._apply(connection, stored, above_id, verdict, position)

    def _apply(
        self, connection: Connection, stored: Stored, parent: bytes | None, verdict: Verdict, position: int
    ) -> None:
        new = msgspec.structs.replace(
            stored,
            parent=parent,
            original=verdict.original,
            expires_ms=verdict.expires_ms,
            retracted=verdict.retracted,
            forgetting=STANDING.index(verdict.forgetting),
            head=verdict.head,
            conflict=verdict.conflict,
        )
        if new == stored:
            return
        self._write(connection, new)
        if new.forgetting == 2:
            connection.execute(self._unseal, (stored.position,))  # the name goes as soon as the ballot carried
            self.query.search.forget([stored.content_id])
        self.touch(stored.content_id, position)

    def _write(self, connection: Connection, row: Stored) -> None:
        connection.execute(
            self._set_verdict,
            (
                *(row.parent, row.original, row.expires_ms, int(row.retracted), row.forgetting),
                *(int(row.head), int(row.conflict), row.position),
            ),
        )

    def _columns(self, connection: Connection, row: Stored) -> tuple[Value, ...]:
        return (
            *(row.position, row.content_id, row.ord),
            *(self.dids.id(connection, row.author), self.dids.id(connection, row.device)),
            *(row.time_ms, row.padded, row.root, row.revises, row.parent, row.original),
            *(row.expires_own, row.expires_ms, int(row.retracted), row.forgetting),
            *(int(row.head), int(row.conflict), int(row.contested)),
        )

    def _plain(
        self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int
    ) -> tuple[Value, ...]:
        """The columns of an original that nothing was said about before: by far the most frequent case."""
        author, device = self.dids.id(connection, origin.author), self.dids.id(connection, origin.device)
        content_id, expires = event.content_id, event.expires_ms
        return (
            *(position, content_id, order_of(origin), author, device, origin.time_ms, event.padded_length),
            *(event.root, None, None, content_id, expires, expires, 0, 0, 1, 0, 0),
        )

    def _write_new(self, connection: Connection) -> None:
        """Write what was collected, before anything looks at the rows of these contents."""
        if not self._new:
            return
        new = {position: (event, origin, position) for event, origin, position in self._new.values()}
        self._new = {}
        kept = self.local.kept([event.content_id for event, _, _ in new.values()])
        rows = [(*self._plain(connection, *found), k) for found, k in zip(new.values(), kept, strict=True)]
        connection.executemany(self._insert_new, rows)
        # The id of one that did not go in was used before.
        span = min(new), max(new)
        there = {int(row[0]) for row in connection.execute(self._between, span)}
        twice = [new.pop(position) for position in [p for p in new if p not in there]]
        connection.executemany(self._seal, [(position, event.descriptor) for event, _, position in new.values()])
        for event, origin, position in twice:
            known = self.load(connection, event.content_id)
            if known is not None:
                self._published_again(connection, event, origin, position, known)

    def flush(self, connection: Connection) -> None:
        """See `View.flush`."""
        self._write_new(connection)
        super().flush(connection)

    def _is_early(self, connection: Connection, content_id: bytes) -> bool:
        """Whether anything may have been said about a content before the content itself arrived."""
        if self._early is None:
            found = (row[0] for sql in self._find_early for row in connection.execute(sql))
            self._early = {bytes(content) for content in found}
        return content_id in self._early or len(self._early) > EARLY

    def _expect(self, content_id: bytes) -> None:
        if self._early is not None and len(self._early) <= EARLY:
            self._early.add(content_id)

    def _hidden(self, connection: Connection, content_id: bytes, author: str) -> bool:
        row = one(connection.execute(self._toggle, (content_id, author)))
        return row is not None and bool(row[1])

    def _parent(self, connection: Connection, row: Stored) -> Stored | None:
        above = None if row.revises is None else self.load(connection, row.revises)
        if above is not None and is_revision_of(row.publication(), above.publication()):
            return above
        return None

    def load(self, connection: Connection, content_id: bytes) -> Stored | None:
        """The stored row of a content."""
        if content_id in self._new:
            self._write_new(connection)
        row = one(connection.execute(self._by_id, (content_id,)))
        return None if row is None else self._stored(connection, row)

    def _stored(self, connection: Connection, row: Any) -> Stored:
        return stored_row(row, self.dids, connection)

    def page(self, request: Request) -> Page:
        """See `View.page`."""
        return self.query.page(request)

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """See `View.rows_by_key`."""
        return self.query.rows_by_key(keys)

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """See `View.digests`."""
        return self.query.digests(connection, low, high)

    def seal(self) -> None:
        """See `View.seal`."""
        self.query.search.clear()

    def forget(self, connection: Connection, contents: Sequence[bytes]) -> None:
        """See `View.forget`."""
        super().forget(connection, contents)
        for content_id in contents:
            row = self.load(connection, content_id)
            if row is not None:
                connection.execute(self._unseal, (row.position,))

    def forget_opened(self, contents: Sequence[bytes]) -> None:
        """See `View.forget_opened`."""
        self.query.search.forget(contents)
