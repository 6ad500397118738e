"""The views outlive their PostgreSQL server: it stops, crashes, loses answers; no event is lost or folded twice."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from conftest import schema_for
from support.lossy_proxy import LossyProxy
from support.memory_log import MemoryLog
from support.plugin_views import Authors
from support.postgres_server import PostgresServer, find_programs
from support.view_world import Vault, at, content, hosting, published, random_history
from walytis_vault.adapters.storage import postgres_server
from walytis_vault.adapters.storage.postgres_views import PostgresViewStore
from walytis_vault.domain import faults
from walytis_vault.domain.errors import MisuseError, StorageError, StorageUnavailableError
from walytis_vault.domain.events import Recorded
from walytis_vault.projections.base import View
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import OWN

pytestmark = pytest.mark.postgres
VIEWS: tuple[type[View], ...] = (*OWN, Authors)
WAIT = 60.0
"""Seconds for anything that a test waits for."""


@pytest.fixture(scope="module")
def cluster(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that tests may stop: `postgres` says whether there can be one."""
    programs = find_programs()
    assert programs is not None
    own = PostgresServer(programs)
    yield own
    own.remove()


@pytest.fixture
def server(cluster: PostgresServer) -> PostgresServer:
    """It runs, whatever the test before did to it."""
    cluster.stop()
    cluster.start()
    return cluster


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    faults.install(None)


def history(count: int, first: int = 0) -> list[Recorded]:
    """Publications."""
    return [at(published(n), "did:a", 2 + n) for n in range(first, first + count)]


def reach(host: ProjectionHost, position: int) -> None:
    """Wait until the views are there, however long the server needs to come back."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        with contextlib.suppress(StorageUnavailableError):
            host.wait(position, timeout=WAIT)
            if host.query("timeline", limit=1).position >= position:
                return
    raise AssertionError(f"the views did not reach {position}")


def right(log: MemoryLog, host: ProjectionHost, folder: Path) -> None:
    """Fail unless the host has exactly what SQLite makes of the log: a doubled event would count twice."""
    (folder / "right").mkdir(exist_ok=True)
    with hosting(folder / "right", log, views=VIEWS) as other:
        other.catch_up()
        for name, state in other.status().items():
            mine = host.status()[name]
            assert (mine.position, mine.hash, mine.parked) == (state.position, state.hash, 0), name
        assert host.query("authors").rows == other.query("authors").rows


@pytest.mark.parametrize("crash", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_server_that_restarts_is_found_again(tmp_path: Path, server: PostgresServer, crash: bool) -> None:
    """While it is away questions get a typed error and events wait; afterwards everything is there, once."""
    log = MemoryLog()
    log.add(random_history(3, 30))

    def make(folder: Path) -> PostgresViewStore:
        return PostgresViewStore(server.url(), schema_for(folder))

    with hosting(tmp_path, log, views=VIEWS, make_store=make) as host:
        host.start()
        host.wait(log.horizon, timeout=WAIT)
        host.query("catalogue")
        server.stop(crash=crash)
        with pytest.raises(StorageUnavailableError, match="repeat later"):
            host.query("catalogue")
        log.add(history(20, 100))
        with pytest.raises(StorageUnavailableError):
            host.wait(log.horizon, timeout=WAIT)
        states = host.status()
        assert all(state.error is not None and "server" in state.error for state in states.values())
        with pytest.raises(StorageUnavailableError):
            host.rebuild()
        server.start()
        reach(host, log.horizon)
        right(log, host, tmp_path)
        host.rebuild()
        right(log, host, tmp_path)


def test_an_answer_that_was_lost_doubles_nothing(tmp_path: Path, server: PostgresServer) -> None:
    """A commit that took effect, whose answer was lost: positions are read again and nothing is folded twice."""
    log = MemoryLog()
    log.add(history(8))
    with (
        tempfile.TemporaryDirectory(prefix="wv-proxy-", dir="/tmp") as name,
        LossyProxy(Path(name), server.folder) as proxy,
    ):
        url = f"postgresql://owner@/postgres?host={name}"
        with hosting(
            tmp_path, log, views=VIEWS, make_store=lambda folder: PostgresViewStore(url, schema_for(folder))
        ) as host:
            host.start()
            host.wait(8, timeout=WAIT)
            for round_ in range(5):
                proxy.lost.clear()
                proxy.lose_commit = True
                log.add(history(3, 50 + 3 * round_))
                assert proxy.lost.wait(WAIT)
                reach(host, log.horizon)
                right(log, host, tmp_path)
            for _ in range(3):
                proxy.cut_all()
                assert host.query("timeline", limit=None).position == log.horizon
            proxy.lost.clear()
            proxy.lose_commit = True
            with pytest.raises(StorageUnavailableError):
                host.rebuild()
            reach(host, log.horizon)
            right(log, host, tmp_path)


@pytest.mark.parametrize(
    "point", [pytest.param("projections.before_commit", marks=pytest.mark.long), "projections.after_commit"]
)
def test_a_server_that_dies_while_events_are_folded(tmp_path: Path, server: PostgresServer, point: str) -> None:
    """The transaction under way is folded again, wholly."""
    log = MemoryLog()
    log.add(history(5))
    died = threading.Event()

    def die(name: str) -> None:
        if name == point and log.horizon > 5 and not died.is_set():
            server.stop(crash=True)
            died.set()

    faults.install(die)
    with hosting(
        tmp_path, log, views=VIEWS, make_store=lambda folder: PostgresViewStore(server.url(), schema_for(folder))
    ) as host:
        host.start()
        host.wait(5, timeout=WAIT)
        log.add(history(40, 10))
        assert died.wait(WAIT)
        server.start()
        reach(host, log.horizon)
        right(log, host, tmp_path)


def test_forgetting_does_not_wait_for_the_server(tmp_path: Path, server: PostgresServer) -> None:
    """What is forgotten while the server is away leaves the memory at once, and the tables when it is back."""
    log, vault = MemoryLog(), Vault()
    log.add(history(3))
    for number in range(3):
        vault.has(number, f"name {number}")
    find = f"SELECT count(*) FROM {schema_for(tmp_path)}.catalogue_1_sealed"
    with hosting(
        tmp_path,
        log,
        vault=vault,
        make_store=lambda folder: PostgresViewStore(server.url(), schema_for(folder)),
    ) as host:
        host.start()
        host.wait(3, timeout=WAIT)
        assert len(host.query("catalogue", filters={"text": "name"}).rows) == 3
        server.stop()
        vault.erase(1)
        host.forget([content(1)])
        server.start()
        log.add(history(1, 9))
        reach(host, 4)
        assert server.run(find) == [(3,)]
        assert [r.name for r in host.query("catalogue", filters={"text": "name"}).rows] == ["name 2", "name 0"]  # type: ignore[attr-defined]


@pytest.mark.long
def test_readers_that_hold_on_do_not_stop_a_rebuild(
    tmp_path: Path, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads the tables for long: the views swap all the same, and the old tables go at the next rebuild."""
    monkeypatch.setattr(postgres_server, "LOCK_WAIT_S", 1)
    log = MemoryLog()
    log.add(history(5))
    schema = schema_for(tmp_path)
    tables = f"SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}' AND tablename LIKE 'catalogue_%_rows'"
    with hosting(tmp_path, log, views=VIEWS, make_store=lambda folder: PostgresViewStore(server.url(), schema)) as host:
        host.catch_up()
        with psycopg.connect(server.url()) as reader:
            reader.execute(f"SELECT count(*) FROM {schema}.catalogue_1_rows".encode())
            host.rebuild("catalogue")
            assert host.live("catalogue").view.view.generation == 2
            assert server.run(tables) == [(2,)]
        host.rebuild("catalogue")
        assert server.run(tables) == [(1,)]
        right(log, host, tmp_path)


def test_one_node_at_a_time(tmp_path: Path, server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second node with the same identity (a copied home) is told so; when the first has ended it may."""
    monkeypatch.setattr(postgres_server, "LOCK_WAIT_S", 1)
    first = PostgresViewStore(server.url(), "same")
    with pytest.raises(StorageUnavailableError, match="another node"):
        PostgresViewStore(server.url(), "same")
    PostgresViewStore(server.url(), "other").close()
    first.close()
    PostgresViewStore(server.url(), "same").close()


def test_a_place_that_cannot_be_used_says_why(server: PostgresServer) -> None:
    """Every way in which a URL can be wrong gives one sentence that says what, and never the password."""
    server.run(
        "CREATE ROLE limited LOGIN PASSWORD 'right'",
        "CREATE DATABASE old ENCODING 'LATIN1' TEMPLATE template0",
        "CREATE DATABASE full_up CONNECTION LIMIT 0",
    )
    cases: list[tuple[str, type[StorageError] | type[MisuseError], str]] = [
        (server.url(user="limited", password="sekret"), StorageUnavailableError, "password authentication failed"),
        (server.url(user="limited"), StorageUnavailableError, "password"),
        (server.url(user="nobody_here", password="sekret"), StorageUnavailableError, '"nobody_here" does not exist'),
        (server.url("no_such"), StorageUnavailableError, 'database "no_such" does not exist'),
        (server.url("old"), StorageError, "UTF8"),
        (server.url(user="limited", password="right"), StorageError, "GRANT CREATE ON DATABASE"),
        ("postgresql://owner:sekret@127.0.0.1:1/postgres", StorageUnavailableError, "Connection refused"),
        ("postgresql://owner:sekret@/postgres?host=/no/such", StorageUnavailableError, "No such file"),
        ("postgresql://owner:sek%ret@/postgres", MisuseError, "%XX"),
        ("postgresql://owner:sekret@h/postgres?colour=red", MisuseError, "libpq"),
    ]
    for url, kind, said in cases:
        with pytest.raises(kind, match=said) as refused:
            PostgresViewStore(url, "views")
        assert "sekret" not in str(refused.value)
        assert "\n" not in str(refused.value)
    server.stop()
    with pytest.raises(StorageUnavailableError, match="cannot reach"):
        PostgresViewStore(server.url(), "views")
