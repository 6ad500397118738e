"""What every view must do: exactly once, by our host or by eventsourcing's own runner, and droppable.

`ViewContract` is for authors of views too: subclass it and set `view_type`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from walytis_vault.adapters.storage.view_store import TemporaryViewStore
from walytis_vault.domain.errors import MisuseError, StorageError
from walytis_vault.domain.events import ClosedMapper
from walytis_vault.projections.ballots import BallotsView
from walytis_vault.projections.base import LOG, Request, View, ViewRecorder
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.holders import Holders
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.members import MembersView
from walytis_vault.projections.store import Table, Value, ViewStore
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
def store(tmp_path: Path, make_store: Callable[[Path], ViewStore]) -> Iterator[ViewStore]:
    made = make_store(tmp_path / "runner")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()


class ViewContract:
    """Subclass it and set `view_type`."""

    view_type: type[View]

    def _open(self, store: ViewStore) -> View:
        live = LiveView(self.view_type, store, Vault().local())
        with store.transaction() as connection:
            live.open(connection, 0)
        return live.view

    def test_the_librarys_own_runner_runs_it(self, tmp_path: Path, store: ViewStore) -> None:
        """Under eventsourcing's runner, on either store, it comes to the rows and hash of our host on SQLite."""
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

    def test_an_event_is_taken_once(self, store: ViewStore) -> None:
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

    def test_only_events_with_an_origin_are_folded(self, store: ViewStore) -> None:
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

    def test_changes_lead_to_rows(self, tmp_path: Path, make_store: Callable[[Path], ViewStore]) -> None:
        """Every key that it says has changed has a row, and the rows are those that a query gives."""
        log = MemoryLog()
        log.add(HISTORY)
        with hosting(tmp_path, log, views=[self.view_type], make_store=make_store) as host:
            host.catch_up()
            changes, _ = host.changes(self.view_type.name, after=0, limit=5000)
            assert changes
            filters = {"state": "all"} if "state" in self.view_type.filters else {}
            rows = host.query(self.view_type.name, limit=None, filters=filters).rows
            shown = {msgspec.json.encode(msgspec.to_builtins(row)) for row in rows}
            assert {msgspec.json.encode(c.row) for c in changes} == shown

    def test_a_dropped_view_leaves_nothing(self, store: ViewStore) -> None:
        """Its tables and its position are gone, and it can begin again."""
        view = self._open(store)
        view.process_event(HISTORY[0], Tracking(LOG, 1))
        with store.transaction() as connection:
            view.drop(connection)
        for table in view.all_tables:
            with pytest.raises(StorageError), store.read() as connection:
                list(connection.execute(f"SELECT 1 FROM {view.t(table.name)}"))
        with store.read() as connection:
            assert view.view.position_in(connection) is None

    def test_unknown_filters_are_refused(self, store: ViewStore) -> None:
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
    """The contract of the port `ViewStore`."""

    def test_a_transaction_is_all_or_nothing(self, store: ViewStore) -> None:
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

    def test_its_errors_are_ours(self, store: ViewStore) -> None:
        """Bad SQL and broken constraints are StorageError."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
        for sql in ("SELECT nonsense FROM nowhere", "INSERT INTO things (id, name) VALUES (1, 'a'), (2, 'a')"):
            with pytest.raises(StorageError), store.transaction() as connection:
                connection.execute(sql)

    def test_a_failure_that_was_swallowed_keeps_nothing(self, store: ViewStore) -> None:
        """A statement that failed, and was ignored, either undoes its transaction or only itself: never half of it."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
        with suppress(StorageError), store.transaction() as connection:
            connection.execute("INSERT INTO things (id, name) VALUES (1, 'a')")
            with suppress(Exception):
                connection.execute("INSERT INTO things (id, name) VALUES (2, 'b'), (3, 'a')")
            connection.execute("INSERT INTO things (id, name) VALUES (4, 'd')")
        with store.read() as connection:
            assert [r[0] for r in connection.execute("SELECT id FROM things ORDER BY id")] in ([], [1, 4])

    def test_values_come_back_as_they_were(self, store: ViewStore) -> None:
        """Whole numbers, bytes and text of any kind read back equal and sort byte by byte, one by one and in bulk."""
        texts = ["", "\x00", "\x00b", "\x01", "\x01\x02", "a", "A", "b\x00", "b", "ä", "Z", "z", "\U0001f600", "\uffff"]
        blobs = [text.encode() for text in texts]
        numbers = [0, -1, 2**63 - 1, -(2**63), 2**31, 5, 255, -300, 2**40, 7, 8, 9, 10, 11]
        rows: list[tuple[Value, ...]] = list(zip(numbers, texts, blobs, strict=True))
        sql = "INSERT INTO things (id, name, raw) VALUES (?, ?, ?)"
        for bulk in (False, True):
            with store.transaction() as connection:
                store.create(connection, TABLE)
                if bulk:
                    connection.executemany(sql, rows)
                else:
                    for row in rows:
                        connection.execute(sql, row)
            for large in (False, True):
                with store.read(large=large) as connection:
                    for column, order in (("id", sorted(numbers)), ("name", sorted(texts)), ("raw", sorted(blobs))):
                        assert [
                            r[0] for r in connection.execute(f"SELECT {column} FROM things ORDER BY {column}")
                        ] == order
                    for row in rows:
                        for column, value in zip(("id", "name", "raw"), row, strict=True):
                            assert list(connection.execute(f"SELECT * FROM things WHERE {column} = ?", (value,))) == [
                                row
                            ]
                    assert list(
                        connection.execute(
                            "SELECT count(*), sum(id), avg(id), max(name), 1 = 2 FROM things WHERE id < 6 AND id > -2"
                        )
                    ) == [(3, 4, 4 / 3, "a", 0)]
            with store.transaction() as connection:
                store.drop(connection, "things")

    def test_numbers_beyond_64_bits_are_refused(self, store: ViewStore) -> None:
        """In one row or many, the same error in every store, and nothing is kept."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
        sql = "INSERT INTO things (id) VALUES (?)"
        with pytest.raises(OverflowError), store.transaction() as connection:
            connection.executemany(sql, [(1,), (2**63,)])
        with pytest.raises(OverflowError), store.transaction() as connection:
            connection.execute(sql, (-(2**63) - 1,))
        with store.read() as connection:
            assert list(connection.execute("SELECT id FROM things")) == []

    def test_many_rows_are_as_many_single_ones(self, store: ViewStore) -> None:
        """`executemany` does what one statement for each row does, also where rows of one call meet."""
        rows = [(n % 7, f"name {n % 7}", b"%d" % n) for n in range(3000)]
        for action in ("DO NOTHING", "(id) DO UPDATE SET raw = excluded.raw WHERE things.raw < excluded.raw"):
            sql = f"INSERT INTO things (id, name, raw) VALUES (?, ?, ?) ON CONFLICT {action}"
            found = []
            for bulk in (True, False):
                with store.transaction() as connection:
                    store.create(connection, TABLE)
                    if bulk:
                        connection.executemany(sql, rows)
                    else:
                        for row in rows[:200] if action == "DO NOTHING" else rows:
                            connection.execute(sql, row)
                    found.append(list(connection.execute("SELECT id, name, raw FROM things ORDER BY id")))
                    store.drop(connection, "things")
            assert found[0] == found[1]
            assert len(found[0]) == 7

    def test_rows_that_are_left_unread_do_no_harm(self, store: ViewStore) -> None:
        """Somebody takes the first of many rows and goes on with other statements."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
            connection.executemany("INSERT INTO things (id, name) VALUES (?, ?)", [(n, f"n{n}") for n in range(9000)])
        for large in (False, True):
            for _ in range(3):
                with store.read(large=large) as connection:
                    rows = iter(connection.execute("SELECT id FROM things ORDER BY id"))
                    assert next(rows) == (0,)
                    assert list(connection.execute("SELECT count(*) FROM things")) == [(9000,)]
                    assert next(rows) == (1,)

    def test_a_read_sees_one_moment(self, store: ViewStore) -> None:
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

    def test_names_are_checked(self, store: ViewStore) -> None:
        """A table or column name never carries SQL."""
        for bad in ('x"; DROP TABLE views; --', "", "Upper", "a b"):
            with pytest.raises(MisuseError), store.transaction() as connection:
                store.create(connection, msgspec.structs.replace(TABLE, name=bad))
            with pytest.raises(MisuseError), store.transaction() as connection:
                store.create(connection, msgspec.structs.replace(TABLE, columns={bad: "text"}))
            with pytest.raises(MisuseError), store.transaction() as connection:
                store.drop(connection, bad)

    def test_what_was_dropped_is_gone(self, store: ViewStore) -> None:
        """Dropping twice is no error, and dropped is dropped."""
        with store.transaction() as connection:
            store.create(connection, TABLE)
            store.drop(connection, "things")
            store.drop(connection, "things")
        with pytest.raises(StorageError), store.read() as connection:
            list(connection.execute("SELECT 1 FROM things"))

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


def test_a_recorder_counts_only_forward(store: ViewStore) -> None:
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
