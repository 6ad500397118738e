"""Tests for authors of views: subclass `ViewContract` in a test file of yours, set `view_type`, and run pytest.

Each test folds a history of a small vault in which everything happens, through real view stores in a temporary
folder. No node is needed. `fold` is for tests of your own. How to write a view: docs/how-to-write-a-projection.md.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBReadResponse, DCBSequencedEvent
from eventsourcing.dcb.application import DCBApplication
from eventsourcing.dcb.popo import InMemoryDCBRecorder, SimpleDCBReadResponse
from eventsourcing.persistence import IntegrityError, Tracking
from eventsourcing.projection import BaseProjectionRunner
from eventsourcing.utils import EnvType

from walytis_vault.adapters.storage.view_store import SqliteViewStore, TemporaryViewStore
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import MisuseError
from walytis_vault.projections.base import LOG, Local, View
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.live import LiveView

MEMBERS: Final = ("did:example:ada", "did:example:bob", "did:example:cyd")
CANARY: Final = "Xylophone-7251"
"""The name of every content in the tests: a view must not store it."""
TIME_MS: Final = 1_767_225_600_000
"""2026-01-01T00:00:00Z: the clock of the first event."""


def content(number: int) -> bytes:
    """The id of content `number`."""
    return hashlib.sha256(b"content %d" % number).digest()[:16]


def at(event: ev.Event, author: str, depth: int) -> ev.Recorded:
    """An event with an origin. A cause has a smaller depth; an hour passes with each depth."""
    raw = msgspec.msgpack.encode([event.TOPIC, author, depth, msgspec.to_builtins(event)])
    origin = ev.Origin(
        batch_id=hashlib.sha256(raw).digest(),
        index=0,
        depth=depth,
        author=author,
        device=f"{author}/1",
        number=depth,
        time_ms=TIME_MS + 3_600_000 * depth,
    )
    return ev.Recorded(event.tags(), event, origin)


def published(number: int, *, size: int = 1024, revises: int | None = None) -> ev.ContentPublished:
    """A publication."""
    return ev.ContentPublished(
        content_id=content(number),
        nonce=bytes(16),
        root=hashlib.sha256(b"root %d" % number).digest(),
        padded_length=size,
        header=bytes(56),
        descriptor=b"sealed %d" % number,
        revises=None if revises is None else content(revises),
    )


def proposed(ballot_id: bytes, number: int) -> ev.ForgettingProposed:
    """A proposal that asks all members to forget one content."""
    return ev.ForgettingProposed(ballot_id=ballot_id, nonce=bytes(16), contents=(content(number),), electorate=MEMBERS)


def keys_of(member: str) -> ev.DeviceKeys:
    """Keys of a member's device, made up."""
    digest = hashlib.sha256(member.encode()).digest()
    return ev.DeviceKeys(
        member=member, device=f"{member}/1", ed25519=digest, ml_dsa_65=digest * 61, bus=digest, peer_id=f"peer {member}"
    )


def sample_history() -> list[ev.Recorded]:
    """Every type of event, in an order in which it may have happened."""
    ada, bob, cyd = MEMBERS
    ballot = hashlib.sha256(b"ballot").digest()[:16]
    other = hashlib.sha256(b"other").digest()[:16]
    history = [
        at(ev.VaultFounded(founder=ada, group="did:example:group"), ada, 1),
        at(ev.KeyAnnounced(keys=keys_of(ada)), ada, 1),
        *(at(ev.MemberAdmitted(member=m, keys=keys_of(m), invitation=bytes(32)), ada, 2) for m in (bob, cyd)),
        *(at(published(n, size=1000 * (n + 1)), MEMBERS[n % 3], 800 * (n % 4) + n + 3) for n in range(18)),
        at(published(20, revises=0), ada, 3300),
        at(published(21, revises=0), ada, 3301),
        at(ev.ContentRetracted(content_id=content(1)), bob, 3302),
        at(ev.ContentRestored(content_id=content(1)), bob, 3303),
        at(ev.ContentRetracted(content_id=content(2)), cyd, 3304),
        at(
            proposed(ballot, 3),
            ada,
            3305,
        ),
        at(ev.ForgettingConsented(ballot_id=ballot), bob, 3306),
        at(ev.ForgettingConsented(ballot_id=ballot), cyd, 3307),
        *(at(ev.ContentErased(contents=(content(3),), ballot_id=ballot), m, 3308) for m in MEMBERS),
        at(
            proposed(other, 4),
            bob,
            3309,
        ),
        at(ev.ForgettingRefused(ballot_id=other), ada, 3310),
        at(ev.ForgettingWithdrawn(ballot_id=other), bob, 3311),
        at(ev.DeviceRemoved(member=bob, device=f"{bob}/1", accepted=()), ada, 3312),
        at(ev.MemberRemoved(member=cyd, accepted=()), ada, 3313),
    ]
    return sorted(history, key=lambda recorded: recorded.origin.depth)


class MemoryLog(InMemoryDCBRecorder):
    """A log in memory: eventsourcing's recorder, with the origins and the horizon that the host wants."""

    def __init__(self, history: Sequence[ev.Recorded] = ()) -> None:
        super().__init__()
        for position, recorded in enumerate(history, start=1):
            plain = ev.to_dcb(recorded.event)
            logged = ev.LoggedEvent(type=plain.type, data=plain.data, tags=plain.tags, origin=recorded.origin)
            self.events.append(DCBSequencedEvent(position=position, event=logged))
        self._moved = threading.Condition()

    @property
    def horizon(self) -> int:
        """The last position."""
        return len(self.events)

    @property
    def last(self) -> int:
        """The same: nothing is hidden here."""
        return len(self.events)

    def wait_beyond(self, position: int, timeout: float | None, stopped: Callable[[], bool]) -> int:
        """See `Horizon.wait_beyond`."""
        with self._moved:
            self._moved.wait_for(lambda: self.horizon > position or stopped(), timeout)
            return self.horizon

    def wake(self) -> None:
        """See `Horizon.wake`."""
        with self._moved:
            self._moved.notify_all()

    def read(
        self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None
    ) -> DCBReadResponse:
        """Events after a position."""
        if query is not None and query.items:
            return super().read(query, after=after, limit=limit)
        found = self.events[after or 0 :][:limit]
        return SimpleDCBReadResponse(iter(found), found[-1].position if found else self.horizon or None)


class _Opened(msgspec.Struct, frozen=True):
    name: str = CANARY
    media_type: str | None = "text/plain"
    labels: tuple[str, ...] = (CANARY,)
    length: int = 900


def local() -> Local:
    """What a node knows beside the log, here: every key and all bytes."""
    return Local(
        unseal=lambda _content, _sealed: _Opened(),
        unseal_reason=lambda _content, _sealed: CANARY,
        has_bytes=lambda _content: True,
        now_ms=lambda: TIME_MS,
    )


@contextmanager
def fold(view_type: type[View], history: Sequence[ev.Recorded], folder: Path) -> Iterator[ProjectionHost]:
    """A host that has folded a history into one view, over an SQLite store in `folder`: ask it with `query`."""
    log, store = MemoryLog(history), SqliteViewStore(folder / "views.sqlite")
    host = ProjectionHost(log, log, store, [view_type], local=local(), temporary=TemporaryViewStore, batch=7)
    try:
        host.catch_up()
        yield host
    finally:
        host.close()
        store.close()


class ViewContract:
    """Subclass it as `class TestMine(ViewContract)` and set `view_type`; override `history` for events of your own."""

    view_type: type[View]

    def history(self) -> list[ev.Recorded]:
        """What is folded: something of it must reach the view."""
        return sample_history()

    def _rows(self, host: ProjectionHost) -> list[Any]:
        filters = {"state": "all"} if "state" in self.view_type.filters else {}
        return list(host.query(self.view_type.name, limit=None, filters=filters).rows)

    def _state(self, host: ProjectionHost) -> tuple[str, list[Any]]:
        """Hash and rows; nothing may be parked."""
        state = host.status()[self.view_type.name]
        assert not state.parked, f"an event failed: {state.error}"
        assert state.error is None, state.error
        return state.hash, self._rows(host)

    def test_it_says_what_it_is(self) -> None:
        """View and row have docstrings, the row is frozen, and keyword-only so that fields can be added."""
        assert self.view_type.__doc__, "give the view a docstring"
        assert self.view_type.row.__doc__, "give the row a docstring"
        assert self.view_type.row.__struct_config__.frozen, (
            "rows must be frozen: class Row(msgspec.Struct, frozen=True)"
        )

    def test_something_reaches_it(self, tmp_path: Path) -> None:
        """The history leaves rows; it stands at the log's end."""
        history = self.history()
        with fold(self.view_type, history, tmp_path) as host:
            assert self._state(host)[1], "no row: override `history` with events that the view folds"
            assert host.status()[self.view_type.name].position == len(history)

    def test_a_rebuild_changes_nothing(self, tmp_path: Path) -> None:
        """Rows and hash are those of before."""
        with fold(self.view_type, self.history(), tmp_path) as host:
            before = self._state(host)
            host.rebuild()
            assert self._state(host) == before, "a rebuild gave other rows: the fold depends on something else"

    def test_a_restart_changes_nothing(self, tmp_path: Path) -> None:
        """What was folded is stored, and not folded again."""
        with fold(self.view_type, self.history(), tmp_path) as host:
            before = self._state(host)
        with fold(self.view_type, self.history(), tmp_path) as host:
            assert self._state(host) == before, "state is kept outside of the tables, or an event was folded twice"

    def test_the_order_of_arrival_does_not_matter(self, tmp_path: Path) -> None:
        """Nodes with equal logs have equal hashes; a view that needs order says so with `order_free = False`."""
        if not self.view_type.order_free:
            return
        hashes = set()
        for seed in range(6):
            history = self.history()
            if seed:
                random.Random(seed).shuffle(history)  # noqa: S311  (an order, no secret)
            folder = tmp_path / str(seed)
            folder.mkdir()
            with fold(self.view_type, history, folder) as host:
                hashes.add(self._state(host)[0])
        assert len(hashes) == 1, "another order of arrival gave another hash: fold sets, minima and counts"

    def test_an_event_is_taken_once(self, tmp_path: Path) -> None:
        """A position at or before the last is refused, and nothing of the event is kept."""
        history = self.history()
        with fold(self.view_type, history, tmp_path) as host:
            before = self._state(host)
            view = host.live(self.view_type.name).view
            for position in (1, len(history)):
                try:
                    view.process_event(history[position - 1], Tracking(LOG, position))
                except IntegrityError:
                    continue
                raise AssertionError(f"position {position} was taken twice")
            assert self._state(host) == before

    def test_eventsourcings_own_runner_runs_it(self, tmp_path: Path) -> None:
        """It is a projection like any other: the library's runner comes to the same hash."""
        history, log = self.history(), MemoryLog(self.history())

        class App(DCBApplication):
            name = LOG

            def __init__(self, env: EnvType | None = None) -> None:  # noqa: ARG002  (the library's signature)
                self.recorder, self.mapper = log, ev.ClosedMapper()

            def close(self) -> None:
                pass

        store = SqliteViewStore(tmp_path / "runner.sqlite")
        try:
            live = LiveView(self.view_type, store, local())
            with store.transaction() as connection:
                live.open(connection, 0)
            with BaseProjectionRunner(
                projection=live.view, application_class=App, tracking_recorder=live.view.view, topics=()
            ) as runner:
                runner.wait(len(history), timeout=30)
            theirs = live.hash()
        finally:
            store.close()
        with fold(self.view_type, history, tmp_path) as host:
            assert self._state(host)[0] == theirs

    def test_changes_lead_to_rows(self, tmp_path: Path) -> None:
        """Who follows the view by its changes has the rows that a query gives."""
        with fold(self.view_type, self.history(), tmp_path) as host:
            changes, _ = host.changes(self.view_type.name, after=0, limit=5000)
            followed = {msgspec.json.encode(c.row) for c in changes if c.row is not None}
            queried = {msgspec.json.encode(msgspec.to_builtins(row)) for row in self._rows(host)}
            assert followed == queried, "touch(key, position) must be called for every row that changes"

    def test_pages_make_up_the_whole(self, tmp_path: Path) -> None:
        """Page by page with cursors gives every row once, in the same order."""
        with fold(self.view_type, self.history(), tmp_path) as host:
            filters = {"state": "all"} if "state" in self.view_type.filters else {}
            rows: list[Any] = []
            cursor: str | None = None
            while True:
                page = host.query(self.view_type.name, limit=2, cursor=cursor, filters=filters)
                assert len(page.rows) <= 2, "`limit` of the request must be obeyed"
                rows += page.rows
                cursor = page.cursor
                if cursor is None:
                    break
            assert rows == self._rows(host), "`limit` and `cursor` of the request must be obeyed"

    def test_unknown_filters_are_refused(self, tmp_path: Path) -> None:
        """A misspelt filter is an error, not an empty result."""
        with fold(self.view_type, self.history(), tmp_path) as host:
            try:
                host.query(self.view_type.name, filters={"no_such_filter": 1})
            except MisuseError:
                return
            raise AssertionError("call self.check_filters(request.filters) in `page`")

    def test_nothing_unsealed_is_stored(self, tmp_path: Path) -> None:
        """Names, labels and reasons stay sealed on disk: else they would outlive their content."""
        with fold(self.view_type, self.history(), tmp_path) as host:
            self._state(host)
            host.rebuild()
        for file in tmp_path.iterdir():
            assert CANARY.encode() not in file.read_bytes(), f"{file.name} holds what `local.unseal` returned"

    def test_a_dropped_view_leaves_nothing(self, tmp_path: Path) -> None:
        """Its tables are gone, and it can begin anew."""
        with fold(self.view_type, self.history(), tmp_path) as host:
            view = host.live(self.view_type.name).view
            store = view.view.store
            with store.transaction() as connection:
                view.drop(connection)
            with store.read() as connection:
                found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
                left = [str(row[0]) for row in found if str(row[0]).startswith(f"{view.name}_")]
            assert not left, f"tables that are not listed in `tables` were made: {left}"


__all__ = ["CANARY", "MEMBERS", "ViewContract", "at", "content", "fold", "published", "sample_history"]
