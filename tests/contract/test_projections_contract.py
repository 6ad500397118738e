"""What every view must do: exactly once, by our host or by eventsourcing's own runner, and droppable.

`ViewContract` is for authors of views too: subclass it and set `view_type`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from eventsourcing.dcb.application import DCBApplication
from eventsourcing.persistence import IntegrityError, Tracking
from eventsourcing.projection import BaseProjectionRunner
from eventsourcing.utils import EnvType

from support.memory_log import MemoryLog
from support.plugin_views import Authors
from support.view_world import Vault, hosting, random_history
from walytis_vault.adapters.storage.view_store import SqliteViewStore, TemporaryViewStore
from walytis_vault.domain.errors import MisuseError, StorageError
from walytis_vault.domain.events import ClosedMapper
from walytis_vault.projections.ballots import BallotsView
from walytis_vault.projections.base import LOG, Request, View, ViewRecorder
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.holders import Holders
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.members import MembersView
from walytis_vault.projections.store import Table
from walytis_vault.projections.timeline import Timeline

HISTORY = random_history(11, 60)


class App(DCBApplication):
    """eventsourcing's application over a log in memory."""

    name = LOG
    log: ClassVar[MemoryLog]

    def __init__(self, env: EnvType | None = None) -> None:
        self.recorder = App.log
        self.mapper = ClosedMapper()

    def close(self) -> None:
        """Nothing to release."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteViewStore]:
    made = SqliteViewStore(tmp_path / "runner.db")
    yield made
    made.close()


class ViewContract:
    """Subclass it and set `view_type`."""

    view_type: type[View]

    def _open(self, store: SqliteViewStore) -> View:
        live = LiveView(self.view_type, store, Vault().local())
        with store.transaction() as connection:
            live.open(connection, 0)
        return live.view

    def test_the_librarys_own_runner_runs_it(self, tmp_path: Path, store: SqliteViewStore) -> None:
        """Under eventsourcing's runner it comes to the same rows and hash as under our host."""
        App.log = MemoryLog()
        App.log.add(HISTORY[:40])
        view = self._open(store)
        with BaseProjectionRunner(
            projection=view, application_class=App, tracking_recorder=view.view, topics=()
        ) as runner:
            runner.wait(40, timeout=20)
            App.log.add(HISTORY[40:])
            runner.wait(len(HISTORY), timeout=20)
        theirs = LiveView(self.view_type, store, Vault().local())
        with store.transaction() as connection:
            theirs.open(connection, 0)
        with hosting(tmp_path, App.log, views=[self.view_type]) as host:
            host.catch_up()
            assert host.status()[self.view_type.name].hash == theirs.hash()
            assert host.query(self.view_type.name, limit=None).rows == theirs.page(Request(limit=None)).rows

    def test_an_event_is_taken_once(self, store: SqliteViewStore) -> None:
        """A position at or before the last is refused, and nothing of the event is kept."""
        view = self._open(store)
        for position, recorded in enumerate(HISTORY, start=1):
            view.process_event(recorded, Tracking(LOG, position))
        before = view.page(Request(limit=None)).rows
        for again in (len(HISTORY), 1):
            with pytest.raises(IntegrityError):
                view.process_event(HISTORY[3], Tracking(LOG, again))
        assert view.page(Request(limit=None)).rows == before
        assert view.view.max_tracking_id(LOG) == len(HISTORY)

    def test_only_events_with_an_origin_are_folded(self, store: SqliteViewStore) -> None:
        """Anything else is refused, and the position stays."""
        view = self._open(store)
        with pytest.raises(MisuseError, match="origin"):
            view.process_event("event", Tracking(LOG, 1))
        assert view.view.max_tracking_id(LOG) is None

    def test_rows_are_frozen_and_documented(self) -> None:
        """Its rows are frozen structs, its module and class say what they are."""
        assert self.view_type.row.__struct_config__.frozen
        assert self.view_type.__doc__
        assert self.view_type.row.__doc__

    def test_changes_lead_to_rows(self, tmp_path: Path) -> None:
        """Every key that it says has changed has a row, and the rows are those that a query gives."""
        log = MemoryLog()
        log.add(HISTORY)
        with hosting(tmp_path, log, views=[self.view_type]) as host:
            host.catch_up()
            changes, _ = host.changes(self.view_type.name, after=0, limit=5000)
            assert changes
            filters = {"state": "all"} if "state" in self.view_type.filters else {}
            rows = host.query(self.view_type.name, limit=None, filters=filters).rows
            shown = {msgspec.json.encode(msgspec.to_builtins(row)) for row in rows}
            assert {msgspec.json.encode(c.row) for c in changes} == shown

    def test_a_dropped_view_leaves_nothing(self, store: SqliteViewStore) -> None:
        """Its tables and its position are gone, and it can begin again."""
        view = self._open(store)
        view.process_event(HISTORY[0], Tracking(LOG, 1))
        with store.transaction() as connection:
            view.drop(connection)
        with store.read() as connection:
            left = [r[0] for r in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            assert not [name for name in left if name.startswith(f"{view.name}_")]
            assert view.view.position_in(connection) is None

    def test_unknown_filters_are_refused(self, store: SqliteViewStore) -> None:
        """A misspelt filter is an error, not an empty result."""
        with pytest.raises(MisuseError, match="no filter"):
            self._open(store).page(Request(filters={"no_such_filter": 1}))


class TestCatalogue(ViewContract):
    """The contract on `catalogue`."""

    view_type = Catalogue


class TestTimeline(ViewContract):
    """The contract on `timeline`."""

    view_type = Timeline


class TestBallots(ViewContract):
    """The contract on `ballots`."""

    view_type = BallotsView


class TestMembers(ViewContract):
    """The contract on `members`."""

    view_type = MembersView


class TestHolders(ViewContract):
    """The contract on `holders`."""

    view_type = Holders


class TestAuthors(ViewContract):
    """The contract on a view that a stranger wrote after docs/views.md."""

    view_type = Authors


TABLE = Table(
    name="things",
    columns={"id": "integer", "name": "text", "raw": "blob"},
    primary_key=("id",),
    unique=(("name",),),
    indexes=(("raw", "id"),),
    partial=((("raw",), "raw IS NOT NULL"),),
)


class TestViewStore:
    """The contract of the port `ViewStore`, on SQLite."""

    def test_a_transaction_is_all_or_nothing(self, store: SqliteViewStore) -> None:
        """What a failing block wrote is gone, tables included."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
            store.create(connection, TABLE)
            connection.execute("INSERT INTO things (id, name) VALUES (?, ?)", (1, "one"))

        def fail() -> None:
            with store.transaction() as connection:
                connection.executemany("INSERT INTO things (id, name) VALUES (?, ?)", [(2, "two"), (3, "three")])
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        with store.read() as connection:
            assert list(connection.execute("SELECT id, name, raw FROM things")) == [(1, "one", None)]

    def test_its_errors_are_ours(self, store: SqliteViewStore) -> None:
        """Bad SQL and broken constraints are StorageError."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
        for sql in ("SELECT nonsense FROM nowhere", "INSERT INTO things (id, name) VALUES (1, 'a'), (2, 'a')"):
            with pytest.raises(StorageError), store.transaction() as connection:
                connection.execute(sql)

    def test_a_read_sees_one_moment(self, store: SqliteViewStore) -> None:
        """What is committed while a read goes on does not appear in it."""
        with store.transaction() as connection:
            store.create(connection, TABLE)

        def write() -> None:
            with store.transaction() as writing:
                writing.execute("INSERT INTO things (id, name) VALUES (1, 'one')")

        with store.read() as connection:
            assert list(connection.execute("SELECT count(*) FROM things")) == [(0,)]
            writer = threading.Thread(target=write)
            writer.start()
            writer.join(10)
            assert not writer.is_alive()
            with store.read() as nested:
                assert list(nested.execute("SELECT count(*) FROM things")) == [(0,)]
        with store.read() as connection:
            assert list(connection.execute("SELECT count(*) FROM things")) == [(1,)]

    def test_names_are_checked(self, store: SqliteViewStore) -> None:
        """A table or column name never carries SQL."""
        for bad in ('x"; DROP TABLE views; --', "", "Upper", "a b"):
            with pytest.raises(MisuseError), store.transaction() as connection:
                store.create(connection, msgspec.structs.replace(TABLE, name=bad))
            with pytest.raises(MisuseError), store.transaction() as connection:
                store.create(connection, msgspec.structs.replace(TABLE, columns={bad: "text"}))
            with pytest.raises(MisuseError), store.transaction() as connection:
                store.drop(connection, bad)

    def test_what_was_dropped_is_gone(self, store: SqliteViewStore) -> None:
        """Dropping twice is no error, and dropped is dropped."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
            store.drop(connection, "things")
            store.drop(connection, "things")
            assert list(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'things'")) == []

    def test_a_temporary_store_leaves_no_file(self) -> None:
        """Its folder is gone when it is closed, also twice."""
        temporary = TemporaryViewStore()
        with temporary.transaction() as connection:
            temporary.create(connection, TABLE)
            ((_, _, path),) = list(connection.execute("PRAGMA database_list"))
        assert Path(str(path)).exists()
        temporary.close()
        temporary.close()
        assert not Path(str(path)).parent.exists()


def test_a_recorder_counts_only_forward(store: SqliteViewStore) -> None:
    """Positions of different applications are kept apart, and none goes back."""
    recorder = ViewRecorder(store, "mine")
    with store.transaction() as connection:
        LiveView(Authors, store, Vault().local()).open(connection, 0)
    recorder.insert_tracking(Tracking("one", 5))
    recorder.insert_tracking(Tracking("other", 2))
    with pytest.raises(IntegrityError):
        recorder.insert_tracking(Tracking("one", 5))
    assert (recorder.max_tracking_id("one"), recorder.max_tracking_id("other")) == (5, 2)
    assert recorder.max_tracking_id("none") is None
    recorder.wait("one", 5, timeout=5)
