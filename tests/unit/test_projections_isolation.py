"""Views of strangers: whatever one of them raises costs only itself; and a store that refuses is tried again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from support.memory_log import MemoryLog
from support.plugin_views import Authors
from support.view_world import Vault, at, content, hosting, published
from walytis_vault.domain import events as ev
from walytis_vault.domain import faults
from walytis_vault.domain.errors import StorageError, StorageFullError, UnknownIdError, ViewFailedError
from walytis_vault.projections.base import Local, Page, Request, ViewRecorder
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.holders import Holders
from walytis_vault.projections.host import RETRY_MOST_S, ProjectionHost
from walytis_vault.projections.store import Connection, Table, ViewStore

MakeStore = Callable[[Path], ViewStore]


class Faulty(Authors):
    """Raises in the methods that `fails` names."""

    name = "faulty"
    fails: ClassVar[set[str]] = set()

    def _may_fail(self, method: str) -> None:
        if method in self.fails:
            raise RuntimeError(f"bad {method}")

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        self._may_fail("__init__")
        super().__init__(view, local)

    def create(self, connection: Connection, *, bulk: bool = False) -> None:
        super().create(connection, bulk=bulk)
        self._may_fail("create")

    def drop(self, connection: Connection) -> None:
        super().drop(connection)
        self._may_fail("drop")

    def _published(self, connection: Connection, event: ev.Event, origin: ev.Origin, position: int) -> None:
        super()._published(connection, event, origin, position)
        self._may_fail("handler")

    def flush(self, connection: Connection) -> None:
        super().flush(connection)
        self._may_fail("flush")

    def roll_back(self) -> None:
        super().roll_back()
        self._may_fail("roll_back")

    def changed(self, connection: Connection, after: int, limit: int) -> list[tuple[int, bytes]]:
        self._may_fail("changed")
        return super().changed(connection, after, limit)

    def page(self, request: Request) -> Page:
        self._may_fail("page")
        return super().page(request)

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        self._may_fail("rows_by_key")
        return super().rows_by_key(keys)

    def key_text(self, key: bytes) -> str:
        self._may_fail("key_text")
        return super().key_text(key)

    def bucket(self, key: bytes) -> int:
        self._may_fail("bucket")
        return super().bucket(key)

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        self._may_fail("digests")
        return super().digests(connection, low, high)

    def seal(self) -> None:
        self._may_fail("seal")

    def forget(self, connection: Connection, contents: Sequence[bytes]) -> None:
        self._may_fail("forget")
        super().forget(connection, contents)

    def forget_opened(self, contents: Sequence[bytes]) -> None:
        self._may_fail("forget_opened")


class BadTable(Authors):
    """No store takes the name of its table."""

    name = "badtable"
    tables = (Table(name="no such name", columns={"author": "blob"}, primary_key=("author",)),)


class BadStatement(Authors):
    """Its statement names a table that is not there."""

    name = "badstatement"

    def _published(self, connection: Connection, event: ev.Event, origin: ev.Origin, position: int) -> None:
        super()._published(connection, event, origin, position)
        if position in (2, 3):
            connection.execute("INSERT INTO nowhere (a) VALUES (?)", (position,))


METHODS = (
    *("__init__", "create", "drop", "handler", "flush", "roll_back", "changed", "page", "rows_by_key", "key_text"),
    *("bucket", "digests", "seal", "forget", "forget_opened"),
)


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    yield
    Faulty.fails = set()
    faults.install(None)


def history(count: int, start: int = 1) -> list[ev.Recorded]:
    return [at(published(i), f"did:{'ab'[i % 2]}", i + 1) for i in range(start, start + count)]


def use(host: ProjectionHost) -> None:
    """Ask a host for everything."""
    host.status()
    host.errors()
    host.query("catalogue")
    host.changes("catalogue", after=0)
    host.seal()
    host.forget([content(1)])
    host.rebuild("catalogue")


@pytest.mark.parametrize("order_free", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_view_that_raises_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, order_free: bool
) -> None:
    """Whatever method of a plugin raises: the node starts, the other views follow, and only our errors are heard."""
    monkeypatch.setattr(Faulty, "order_free", order_free)
    log = MemoryLog()
    log.add(history(4))
    with hosting(tmp_path, log, views=[Catalogue, Faulty, Holders]) as host:
        host.catch_up()
    # From the first event on, and after a restart with rows and a changed version.
    for folder, version in ((tmp_path / "new", 1), (tmp_path, 1), (tmp_path, 2)):
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(Faulty, "version", version)
        Faulty.fails = {method}
        with hosting(folder, log, views=[Catalogue, Faulty, Holders], batch=2) as host:
            host.start()
            assert host.wait(len(log.events), timeout=20) >= len(log.events)
            position = log.add(history(3, len(log.events) + 1))
            assert host.wait(position, timeout=20) == position
            use(host)
            assert len(host.query("catalogue").rows) == position
            assert host.status()["catalogue"].error is None
            for ask in (host.query, host.rebuild, host.retry, lambda name: host.changes(name, after=0), host.replay):
                with contextlib.suppress(ViewFailedError):
                    ask("faulty")
            assert host.wait(log.add(history(1, 50 + len(log.events))), timeout=20) == len(log.events)
            assert host.status()["holders"].error is None
        Faulty.fails = set()


@pytest.mark.parametrize(("method", "told"), [("create", "create"), ("digests", "hash"), ("forget", "forget")])
def test_what_a_view_raised_shows_in_status(tmp_path: Path, method: str, told: str) -> None:
    """Status names the view and what it could not do; the others have no error."""
    log = MemoryLog()
    log.add(history(2))
    Faulty.fails = {method}
    with hosting(tmp_path, log, views=[Catalogue, Faulty]) as host:
        host.catch_up()
        host.forget([content(1)])
        states = host.status()
        assert told in (states["faulty"].error or "")
        assert f"RuntimeError: bad {method}" in (states["faulty"].error or "")
        assert states["catalogue"].error is None


def test_a_view_whose_tables_cannot_be_made_is_left_out(tmp_path: Path, make_store: MakeStore) -> None:
    """It is named in status, asking it is refused by name, and the node runs without it."""
    log = MemoryLog()
    log.add(history(3))
    with hosting(tmp_path, log, views=[Catalogue, BadTable], make_store=make_store) as host:
        assert host.catch_up() == 3
        assert "no such name" in (host.status()["badtable"].error or "")
        assert "no such name" in host.errors()["badtable"]
        assert host.folded == ("catalogue",)
        with pytest.raises(ViewFailedError, match="badtable"):
            host.query("badtable")
        with pytest.raises(UnknownIdError, match="there are catalogue"):
            host.query("other")


def test_a_refused_statement_parks_its_event(tmp_path: Path, make_store: MakeStore) -> None:
    """An error of SQL is the view's own, as any other that it raises: the event is parked, everything goes on."""
    log = MemoryLog()
    log.add(history(5))
    with hosting(tmp_path, log, views=[Catalogue, BadStatement], make_store=make_store) as host:
        host.start()
        assert host.wait(5, timeout=20) == 5
        assert host.wait(log.add(history(1, 9)), timeout=20) == 6
        state = host.status()["badstatement"]
        assert (state.position, state.parked) == (6, 2)
        assert "nowhere" in (state.error or "")
        assert host.errors() == {"badstatement": state.error}
        assert sum(r.count for r in host.query("badstatement").rows) == 4  # type: ignore[attr-defined]
        assert host.status()["catalogue"].error is None
        assert host.retry("badstatement") == 2


def test_only_the_view_that_fails_is_folded_slowly(tmp_path: Path) -> None:
    """The healthy views keep their large transactions."""
    log = MemoryLog()
    log.add(history(40))
    Faulty.fails = {"handler"}
    commits = 0

    def count(name: str) -> None:
        nonlocal commits
        commits += name == "projections.before_commit"

    with hosting(tmp_path, log, views=[Catalogue, Faulty, Holders], batch=10) as host:
        faults.install(count)
        host.catch_up()
        faults.install(None)
        assert commits == 1
        assert host.status()["faulty"].parked == 40
        assert {host.live(n).position for n in ("catalogue", "faulty", "holders")} == {40}


@pytest.mark.parametrize("error", [StorageFullError, StorageError])
def test_a_full_disk_stops_nothing_for_ever(tmp_path: Path, error: type[StorageError]) -> None:
    """A full or locked disk is shown and heard by those who wait; when it passes, all goes on without a restart."""
    log = MemoryLog()
    log.add(history(4))

    def refuse(name: str) -> None:
        if name == "projections.before_commit":
            raise error("no space left")

    with hosting(tmp_path, log, views=[Catalogue, Holders]) as host:
        faults.install(refuse)
        host.start()
        with pytest.raises(error, match="no space left"):
            host.wait(4, timeout=0.5)
        assert "no space left" in (host.status()["catalogue"].error or "")
        assert set(host.errors()) == {"catalogue", "holders"}
        assert host.query("catalogue").rows == ()
        faults.install(None)
        assert host.wait(4, timeout=10 + RETRY_MOST_S) == 4
        assert len(host.query("catalogue").rows) == 4
        assert host.errors() == {}
        assert host.status()["catalogue"].error is None


def test_a_fault_of_ours_shows_in_status(tmp_path: Path) -> None:
    """What stops the views for good is no secret."""
    log = MemoryLog()
    log.add(history(2))

    def fail(name: str) -> NoReturn:
        raise LookupError(f"a bug at {name}")

    with hosting(tmp_path, log, views=[Catalogue]) as host:
        stopped = threading.Event()
        host.on_advance(lambda _: stopped.set())
        host.catch_up = lambda: fail("catch_up")  # type: ignore[method-assign]
        host.start()
        with pytest.raises(StorageError, match="a bug"):
            host.wait(2, timeout=10)
        assert "a bug" in (host.status()["catalogue"].error or "")
        assert "a bug" in host.errors()["catalogue"]


def test_names_are_dropped_from_memory_though_the_store_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every view forgets what it opened; then the caller hears that the store is full, and repeats."""
    log, vault = MemoryLog(), Vault()
    log.add(history(2))
    vault.has(1, "one")
    with hosting(tmp_path, log, views=[Faulty, Catalogue], vault=vault) as host:
        host.catch_up()
        assert len(host.query("catalogue", filters={"text": "one"}).rows) == 1
        Faulty.fails = {"forget_opened"}
        vault.erase(1)

        @contextlib.contextmanager
        def full() -> Iterator[NoReturn]:
            raise StorageFullError("no space left")
            yield

        with monkeypatch.context() as patched:
            patched.setattr(host.live("catalogue").view.view.store, "transaction", full)
            with pytest.raises(StorageFullError):
                host.forget([content(1)])
        assert host.query("catalogue", filters={"text": "one"}).rows == ()
        host.forget([content(1)])
        assert "forget_opened" in host.errors()["faulty"]
