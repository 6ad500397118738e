"""The part of the `VaultService` in memory that is asked: events, views and what follows them."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from walytis_vault.bus.messages import (
    BallotInfo,
    Change,
    QueryPage,
    Status,
    ViewStatus,
)
from walytis_vault.domain.errors import (
    TimedOutError,
    UnknownIdError,
)

VIEWS = ("catalogue", "ballots", "members", "timeline", "audit")


class MemoryViews:
    """A base of `MemoryService`, which sets all of these."""

    contents: dict[str, dict[str, Any]]
    ballots: dict[str, BallotInfo]
    events: list[Change]
    members: dict[str, dict[str, str]]
    change_reads: int
    locked: bool
    _listeners: list[Callable[[int], None]]
    _condition: threading.Condition

    @property
    def position(self) -> int:
        return len(self.events)

    def query(
        self,
        view: str,
        *,
        limit: int | None,
        cursor: str | None,
        filters: dict[str, Any],
        as_of: int | str | None = None,
    ) -> QueryPage:
        with self._condition:
            known = list(self._rows(view))[: as_of if isinstance(as_of, int) else None]
            rows = [row for row in known if _matches(row, filters)]
            start = int(cursor or 0)
            end = len(rows) if limit is None else start + limit
            more = str(end) if end < len(rows) else None
            return QueryPage(rows=tuple(dict(r) for r in rows[start:end]), cursor=more, position=self.position)

    def changes(self, view: str, *, after: int, limit: int, filters: dict[str, Any]) -> tuple[list[Change], int]:
        with self._condition:
            self.change_reads += 1
            if view != "events" and view not in VIEWS:
                raise UnknownIdError(f"there is no view {view!r}")
            found: list[Change] = []
            position = after
            for event in self.events[after:]:
                if len(found) == limit:
                    break
                position = event.position
                change = event if view == "events" else self._with_row(view, event)
                if change is None:
                    continue
                fields = msgspec.to_builtins(change) | (change.row or {})
                if view == "events":
                    fields["content_id"] = [i for i in event.ids if i in self.contents]
                    fields["ballot_id"] = [i for i in event.ids if i in self.ballots]
                if _matches(fields, filters):
                    found.append(change)
            return found, max(position, min(after, self.position))

    def on_advance(self, callback: Callable[[int], None]) -> Callable[[], None]:
        with self._condition:
            self._listeners.append(callback)

        def stop() -> None:
            with self._condition, contextlib.suppress(ValueError):
                self._listeners.remove(callback)

        return stop

    def wait_for(self, position: int, *, timeout: float) -> int:
        with self._condition:
            if not self._condition.wait_for(lambda: self.position >= position, timeout):
                raise TimedOutError(f"position {position} was not reached")
            return self.position

    def status(self) -> Status:
        with self._condition:
            text = hashlib.sha256(msgspec.json.encode(self.events)).hexdigest()
            return Status(
                vault_id="vault-in-memory",
                did="did:me",
                name="memory",
                position=self.position,
                peers=(),
                views={view: ViewStatus(position=self.position, hash=text) for view in VIEWS},
                version="0",
                network="loopback",
                locked=self.locked,
            )

    def _event(self, topic: str, *ids: str) -> int:
        position = len(self.events) + 1
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(0))
        self.events.append(Change(position=position, type=topic, author="did:me", time=moment, ids=ids))
        self._condition.notify_all()
        for listener in list(self._listeners):
            listener(position)
        return position

    def _rows(self, view: str) -> Iterator[dict[str, Any]]:
        if view in ("catalogue", "timeline"):
            yield from self.contents.values()
        elif view == "ballots":
            yield from (msgspec.to_builtins(b) for b in self.ballots.values())
        elif view == "members":
            yield from self.members.values()
        elif view == "audit":
            yield from (msgspec.to_builtins(e) for e in self.events)
        else:
            raise UnknownIdError(f"there is no view {view!r}")

    def _with_row(self, view: str, event: Change) -> Change | None:
        if view == "catalogue":
            row = next((self.contents[i] for i in event.ids if i in self.contents), None)
            return None if row is None else msgspec.structs.replace(event, row=dict(row))
        if view == "ballots":
            ballot = next((self.ballots[i] for i in event.ids if i in self.ballots), None)
            return None if ballot is None else msgspec.structs.replace(event, row=msgspec.to_builtins(ballot))
        return event


def _matches(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    for name, wanted in filters.items():
        field = "labels" if name == "label" else name
        value = row.get(field)
        if isinstance(value, list):
            if wanted not in value:
                return False
        elif value != wanted:
            return False
    return True
