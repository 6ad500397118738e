"""Answers about views: queries, changes for subscribers, status, and views as they were at an earlier position.

The half of the host that only reads. Everything here may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem, DCBSequencedEvent

from walytis_vault.domain.errors import MisuseError, NotYetAvailableError, StorageError, UnknownIdError, ViewFailedError
from walytis_vault.domain.events import PRODUCT_EVENTS, LoggedEvent, ballot_tag, content_tag, revision_tag
from walytis_vault.projections import paging
from walytis_vault.projections.announcing import Answer
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.blame import blaming
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.log import EventLog, Horizon
from walytis_vault.projections.past import Moment, Past
from walytis_vault.projections.replay import Replay
from walytis_vault.projections.runner import Decoded, Runner
from walytis_vault.projections.source import Source
from walytis_vault.projections.store import ViewStore

MAX_CHANGES: Final = 5000
"""Changes given at once (a count)."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What happened at a position. Ids are hex text, the time is ISO 8601 (UTC) by the author's clock."""

    position: int
    type: str
    author: str
    time: str
    ids: tuple[str, ...] = ()
    """The contents, ballots and members that the event concerns; for a view the id of the row."""
    row: dict[str, Any] | None = None
    """The view's row as it is now; None for subscriptions to "events", or when there is no row any more."""


class ViewState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a view is."""

    position: int
    hash: str
    """Hex SHA-256, equal on all nodes with equal logs; empty for views that differ by their nature."""
    parked: int = 0
    """Events that failed and wait for `retry` (a count)."""
    error: str | None = None
    """Why the view stopped or could not do something, or why its oldest parked event failed."""
    rebuilding: float | None = None
    """Progress of a rebuild from 0 to 1, None when there is none."""


class Asking:
    """Base of the host."""

    _log: EventLog
    _horizon: Horizon
    _store: ViewStore
    _local: Local
    _temporary: Callable[[], ViewStore] | None
    _views: dict[str, LiveView]
    _broken: dict[str, str]
    """Views that are left out, and why."""
    _sources: dict[str, Source]
    _past: Past
    _moved: threading.Condition
    _closing: bool

    def _decode(self, sequenced: DCBSequencedEvent) -> Decoded:
        raise NotImplementedError

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        raise NotImplementedError

    def trouble(self) -> str | None:
        """Why no view is folded."""
        raise NotImplementedError

    def live(self, name: str) -> LiveView:
        """A view that is folded here. Raises UnknownIdError; ViewFailedError for one that is left out."""
        live = self._views.get(name)
        if live is None and name in self._broken:
            raise ViewFailedError(f"view {name} was {self._broken[name]}")
        if live is None:
            raise UnknownIdError(f"no view {str(name)[:60]!r}: there are {', '.join(sorted(self.names))}")
        return live

    @property
    def names(self) -> tuple[str, ...]:
        """All views that can be queried."""
        return (*self._views, *self._sources)

    @property
    def folded(self) -> tuple[str, ...]:
        """The views that are folded here: all but those that somebody else keeps."""
        return tuple(self._views)

    def parked(self, name: str) -> list[tuple[int, str]]:
        """(position, error) of the events that a view could not fold, oldest first. Raises UnknownIdError."""
        return self.live(name).runner.parked()

    def row_type(self, name: str) -> type[msgspec.Struct]:
        """The type of a view's rows. Raises UnknownIdError."""
        source = self._sources.get(name)
        return source.row if source is not None else self.live(name).type.row

    def query(
        self, view: str, *, limit: int | None = 100, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> Page:
        """Rows of a view, as its frozen structs.

        Args:
            limit: rows in this page, None for all.
            cursor: from the page before.
            filters: see docs/views.md; a value of None does not filter.
        Raises:
            UnknownIdError: no such view.
            MisuseError: no such filter, or a bad value.
            NotYetAvailableError: it is being built for the first time, or for a new version: it has no rows to give.
            ViewFailedError: the view's own code failed.
            StorageError: the store cannot be read.
        """
        request = Request(
            limit=limit, cursor=cursor, filters={k: v for k, v in (filters or {}).items() if v is not None}
        )
        source = self._sources.get(view)
        if source is not None:
            page = source.page(request)
            return Page(rows=page.rows, cursor=page.cursor, position=self._horizon.horizon)
        return self._patiently(lambda: self._built(view).page(request))

    def wait_built(self, view: str, *, timeout: float) -> None:
        """Block while a view is being built that has no older rows to answer from.

        Args:
            timeout: seconds.
        Raises:
            UnknownIdError. NotYetAvailableError: not in time. ViewFailedError: it stopped before it was built.
        """
        if view in self._sources:
            return
        live = self.live(view)
        with self._moved:
            self._moved.wait_for(lambda: not live.behind or live.runner.stopped or self._closing, timeout)
        self._built(view)

    def _built(self, name: str) -> LiveView:
        live = self.live(name)
        if live.behind and live.runner.stopped:
            raise ViewFailedError(f"view {name} stopped at {live.runner.stopped}: walytis-vault retry {name}")
        if live.behind:
            done = int(100 * self._progress(live.position))
            raise NotYetAvailableError(f"view {name} is being built, {done} %: repeat later")
        return live

    def _progress(self, position: int) -> float:
        return min(1.0, position / max(1, self._horizon.horizon))

    def query_as_of(
        self,
        view: str,
        as_of: int | str,
        *,
        limit: int | None = 100,
        cursor: str | None = None,
        filters: dict[str, Any] | None = None,
    ) -> Page:
        """As `query`, of the view as it was; it stays folded for a while, so that pages can follow.

        Args:
            as_of: a position; or a time (ISO 8601, UTC): then with all events up to it, by their authors' clocks.
        Raises:
            UnknownIdError, MisuseError, StorageError: as `query`.
        """
        if view in self._sources:
            raise MisuseError(f"view {view} is a list of what arrived here and when: it has no past, ask it as it is")
        self.live(view)
        moment: Moment
        horizon = self._horizon.horizon
        if isinstance(as_of, int) or (as_of.isascii() and as_of.isdigit()):
            moment = min(paging.count("as_of", as_of), horizon), None
        else:
            # The pages that follow are those of the same fold, whatever arrived since.
            upto, cursor = paging.read_dated_cursor(cursor, horizon)
            moment = upto, paging.moment("as_of", as_of)
        given = {k: v for k, v in (filters or {}).items() if v is not None}
        page = self._past.query(view, moment, limit=limit, cursor=cursor, filters=given)
        if moment[1] is None or page.cursor is None:
            return page
        return Page(rows=page.rows, cursor=paging.dated_cursor(moment[0], page.cursor), position=page.position)

    def _fold_past(self, view: str, moment: Moment) -> Replay:
        return self.replay(view, until=moment[0], until_ms=moment[1])

    def status(self) -> dict[str, ViewState]:
        """How far each view is, whatever is wrong with it or with the store."""
        states = {name: self._state(live) for name, live in self._views.items()}
        return states | {name: ViewState(position=0, hash="", error=why) for name, why in self._broken.items()}

    def errors(self) -> dict[str, str]:
        """What is wrong, by view: as `status` says it, without reading any rows."""
        found = {name: self._look(live)[1] for name, live in self._views.items()} | self._broken
        return {name: error for name, error in found.items() if error}

    def _look(self, live: LiveView) -> tuple[int, str | None]:
        """How many events of a view are parked, and what is wrong with it."""
        try:
            parked = live.runner.parked()
        except StorageError as e:
            return 0, str(e)
        oldest = f"position {parked[0][0]}: {parked[0][1]}" if parked else None
        return len(parked), live.runner.stopped or self.trouble() or oldest or live.runner.trouble

    def _state(self, live: LiveView) -> ViewState:
        parked, error = self._look(live)
        rebuilding, digest = None, ""
        if live.building is not None or live.behind:
            at = live.position if live.building is None else live.building.position
            rebuilding = round(self._progress(at), 4)
        try:
            digest = live.hash()
        except (StorageError, ViewFailedError) as e:
            error = error or f"no hash: {e}"
        return ViewState(position=live.position, hash=digest, parked=parked, error=error, rebuilding=rebuilding)

    # Changes

    def changes(
        self, view: str, *, after: int, limit: int = 500, filters: dict[str, Any] | None = None
    ) -> tuple[list[Change], int]:
        """Changes after a position, oldest first: each event once, for a view once for each row that it changed.

        Args:
            after: the position that the last call returned; 0 for all.
            limit: about how many to look at, at most 5000. All of one position come together.
            filters: `type`, `author`, `content_id`, `ballot_id`; for a view also any field of its rows, and `label`.
        Returns:
            The changes that fit, and the position up to which everything was looked at.
        Raises:
            UnknownIdError, MisuseError, StorageError.
        """
        after = paging.count("after", after)
        limit = min(paging.count("limit", limit) or 1, MAX_CHANGES)
        given = {k: v for k, v in (filters or {}).items() if v is not None}
        if view == "events":
            return self._event_changes(after, limit, given)
        if view in self._sources:
            raise MisuseError(f"view {view} cannot be subscribed to: query it, or subscribe to 'events'")
        return self._view_changes(self.live(view), after, limit, given)

    def _event_changes(self, after: int, limit: int, filters: dict[str, Any]) -> tuple[list[Change], int]:
        unknown = sorted(set(filters) - {"type", "author", "content_id", "ballot_id"})
        if unknown:
            raise MisuseError(f"events have no filter {unknown[0]!r}; they have: author, ballot_id, content_id, type")
        types: list[str] = []
        tags: list[str] = []
        about: list[list[str]] = [[]]
        if "type" in filters:
            types = [paging.choice("type", filters["type"], tuple(sorted(PRODUCT_EVENTS.topics)))]
        if "content_id" in filters:
            content_id = paging.hex_id("content_id", filters["content_id"])
            about = [[content_tag(content_id)], [revision_tag(content_id)]]
        if "ballot_id" in filters:
            tags = [ballot_tag(paging.hex_id("ballot_id", filters["ballot_id"]))]
        items = [DCBQueryItem(types=types, tags=[*tags, *either]) for either in about]
        query = DCBQuery(items=items) if types or tags or "content_id" in filters else None
        upto = self._horizon.horizon
        found = [e for e in self._log.read(query, after=after, limit=limit) if e.position <= upto]
        looked = found[-1].position if len(found) == limit else max(upto, after)
        author = filters.get("author")
        changes = [_change(e) for e in found]
        return [c for c in changes if author is None or c.author == author], looked

    def _view_changes(
        self, live: LiveView, after: int, limit: int, filters: dict[str, Any]
    ) -> tuple[list[Change], int]:
        fits = _row_filter(live, filters)

        def read(runner: Runner) -> tuple[View, int, list[tuple[int, bytes]], dict[bytes, msgspec.Struct]]:
            view = runner.view
            with self._store.read() as connection:
                position = view.view.position_in(connection) or 0
                changed = view.changed(connection, after, limit)
            return view, position, changed, view.rows_by_key([key for _, key in changed])

        view, position, changed, rows = self._patiently(lambda: live.ask(read))
        looked = changed[-1][0] if len(changed) >= limit else max(position, after)
        events = self._events_at(sorted({p for p, _ in changed}))
        found = []
        for at, key in changed:
            event, row = events.get(at), rows.get(key)
            if event is None:
                continue
            with blaming(live.name):
                text = view.key_text(key)
            change = msgspec.structs.replace(
                _change(event), position=at, ids=(text,), row=None if row is None else msgspec.to_builtins(row)
            )
            if fits(change):
                found.append(change)
        return found, looked

    def _events_at(self, positions: Sequence[int]) -> dict[int, DCBSequencedEvent]:
        if not positions:
            return {}
        span = positions[-1] - positions[0] + 1
        if span <= 4 * len(positions):
            found: Iterable[DCBSequencedEvent] = self._log.read(after=positions[0] - 1, limit=span)
        else:
            found = (e for p in positions for e in self._log.read(after=p - 1, limit=1))
        return {e.position: e for e in found}

    def replay(self, view: str, *, until: int | None = None, until_ms: int | None = None) -> Replay:
        """A view as it was at a position, or with the events up to a time by their authors' clocks.

        It answers `query` until it is closed; use it as a context manager.
        Raises:
            UnknownIdError: no such view. MisuseError: the host has no store for it.
        """
        if self._temporary is None:
            raise MisuseError("this node has no place for a temporary view")
        upto = self._horizon.horizon if until is None else min(paging.count("until", until), self._horizon.horizon)
        live = self.live(view)
        then = until_ms
        if then is None:
            last = next(iter(self._log.read(after=upto - 1, limit=1)), None) if upto else None
            event = None if last is None else last.event
            then = event.origin.time_ms if isinstance(event, LoggedEvent) else 0
        # What expired after that moment had not expired then.
        local = msgspec.structs.replace(self._local, now_ms=lambda: then, past=True)
        store = self._temporary()
        try:
            with blaming(view):
                runner = Runner(live.type(ViewRecorder(store, view), local), store)
                replay = Replay(runner, store)
                replay.fill(self._log, self._decode, upto, until_ms)
        except BaseException:
            store.close()
            raise
        return replay


def _change(sequenced: DCBSequencedEvent) -> Change:
    event = sequenced.event
    if not isinstance(event, LoggedEvent):
        raise MisuseError("the log gave an event without its origin")
    return Change(
        position=sequenced.position,
        type=event.type,
        author=event.origin.author,
        time=paging.iso(event.origin.time_ms),
        ids=tuple(tag.partition(":")[2] for tag in event.tags),
    )


def _row_filter(live: LiveView, filters: dict[str, Any]) -> Callable[[Change], bool]:
    """Filters on a change: its type and author, or fields of the row by equality."""
    fields = {f.name for f in msgspec.structs.fields(live.type.row)}
    known = fields | {"type", "author"} | ({"label"} if "labels" in fields else set())
    unknown = sorted(set(filters) - known)
    if unknown:
        raise MisuseError(
            f"changes of {live.name} have no filter {unknown[0]!r}; they have: {', '.join(sorted(known))}"
        )

    def fits(change: Change) -> bool:
        row = change.row or {}
        for name, wanted in filters.items():
            if name == "label":
                if wanted not in (row.get("labels") or ()):
                    return False
            elif name == "type":
                if change.type != wanted:
                    return False
            elif row.get(name, change.author if name == "author" else None) != wanted:
                return False
        return True

    return fits
