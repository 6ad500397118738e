"""The host's rebuilds: of a new version, of a new view, after void events, while queries go on, through crashes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.counter_view import Counter, Ordered, counts, history
from support.memory_log import MemoryLog
from support.view_world import content, hosting
from walytis_vault.domain import events as ev
from walytis_vault.domain import faults
from walytis_vault.domain.errors import (
    NotYetAvailableError,
    ViewFailedError,
)
from walytis_vault.projections.base import View
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.store import Connection


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    yield
    Counter.broken.clear()
    faults.install(None)


@pytest.mark.parametrize("others", [[], [Catalogue]], ids=["alone", "beside"])
def test_a_new_version_rebuilds_itself_at_start(tmp_path: Path, others: list[type[View]]) -> None:
    """A view whose version changed begins anew, answers nothing before it is built, and leaves no old tables."""
    log = MemoryLog()
    log.add(history(4))
    with hosting(tmp_path, log, views=[Counter, *others]) as host:
        host.catch_up()

    class Doubled(Counter):
        name = "counter"
        version = 2

        def _published(
            self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int
        ) -> None:
            super()._published(connection, event, origin, position)
            super()._published(connection, event, origin, position)

    with hosting(tmp_path, log, views=[Doubled, *others]) as host:
        assert host.position == (4 if others else 0)
        if others:
            with pytest.raises(NotYetAvailableError, match="being built, 0 %"):
                host.query("counter")
        host.catch_up()
        assert sum(counts(host.query).values()) == 8
        with host.live("counter").view.view.store.read() as connection:
            tables = [r[0] for r in connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'counter%rows'")]
        assert tables == ["counter_2_rows"]


def test_a_view_that_is_new_catches_up_behind_the_others(tmp_path: Path) -> None:
    """Adding a view does not take the position of the others back."""
    log = MemoryLog()
    log.add(history(8))
    with hosting(tmp_path, log, views=[Catalogue]) as host:
        host.catch_up()
    with hosting(tmp_path, log, views=[Catalogue, Counter], batch=2) as host:
        assert host.position == 8
        assert host.status()["counter"].rebuilding == 0.0
        log.add(history(1, 20))
        assert host.catch_up() == 9
        assert host.status()["counter"].rebuilding is None
        assert sum(counts(host.query).values()) == 9


def test_a_view_that_is_being_built_is_waited_for_and_answers_nothing_wrong(tmp_path: Path) -> None:
    """Until it has all rows a query is told how far it is; waiting for it ends when it is there, or stopped."""
    log = MemoryLog()
    log.add(history(8))
    with hosting(tmp_path, log, views=[Catalogue]) as host:
        host.catch_up()
    with hosting(tmp_path, log, views=[Catalogue, Counter, Ordered], batch=2) as host:
        said: list[str] = []

        def look(name: str) -> None:
            if name == "projections.after_commit" and host.live("counter").behind:
                with pytest.raises(NotYetAvailableError) as refused:
                    host.query("counter")
                said.append(str(refused.value))
                assert len(host.query("catalogue").rows) == 8

        host.wait_built("catalogue", timeout=0)
        with pytest.raises(NotYetAvailableError, match="view counter is being built, 0 %: repeat later"):
            host.wait_built("counter", timeout=0)
        Counter.broken.add(content(7))
        faults.install(look)
        host.start()
        host.wait_built("counter", timeout=20)
        faults.install(None)
        assert said
        assert all("view counter is being built" in text for text in said)
        assert sum(counts(host.query).values()) == 7
        with pytest.raises(ViewFailedError, match="stopped at position 8"):
            host.wait_built("ordered", timeout=20)
        with pytest.raises(ViewFailedError, match="stopped at position 8"):
            host.query("ordered")


def test_queries_and_new_events_go_on_during_a_rebuild(tmp_path: Path) -> None:
    """The live rows stay until the new ones have caught up, also with what was appended meanwhile."""
    log = MemoryLog()
    log.add(history(10))
    with hosting(tmp_path, log, views=[Counter], batch=1) as host:
        host.catch_up()
        during: list[tuple[int, float | None]] = []

        def watch(name: str) -> None:
            if name == "projections.rebuild" and len(during) < 3:
                log.add(history(1, 30 + len(during)))
                state = host.status()["counter"]
                during.append((sum(counts(host.query).values()), state.rebuilding))

        faults.install(watch)
        host.rebuild("counter")
        faults.install(None)
        assert [total for total, _ in during] == [10, 11, 12]
        assert all(progress is not None and progress < 1 for _, progress in during)
        host.catch_up()
        assert sum(counts(host.query).values()) == 13
        assert host.status()["counter"].rebuilding is None


@pytest.mark.parametrize("point", ["projections.rebuild", "projections.swap", "projections.before_commit"])
def test_a_crash_during_a_rebuild_leaves_the_live_view(tmp_path: Path, point: str) -> None:
    """After a restart the old rows are there, the half-built ones are gone, and a rebuild works."""
    log = MemoryLog()
    log.add(history(9))

    def crash(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with hosting(tmp_path, log, batch=2) as host:
        host.catch_up()
        before = {n: s.hash for n, s in host.status().items()}
        faults.install(crash)
        with pytest.raises(KeyboardInterrupt):
            host.rebuild()
        faults.install(None)
    with hosting(tmp_path, log, batch=2) as host:
        assert host.position == 9
        assert {n: s.hash for n, s in host.status().items()} == before
        store = host.live("catalogue").view.view.store
        with store.read() as connection:
            tables = [
                r[0] for r in connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'catalogue%rows'")
            ]
        assert len(tables) == 1
        host.rebuild()
        assert {n: s.hash for n, s in host.status().items()} == before


def test_void_events_go_when_the_log_says_so(tmp_path: Path) -> None:
    """After `reset_all`, rows from events that became void are gone; the running thread does it."""
    log = MemoryLog()
    log.add(history(6))
    with hosting(tmp_path, log, views=[Counter]) as host:
        host.start()
        host.wait(6, timeout=10)
        log.void = {1, 2, 3}
        done = threading.Event()
        host.on_advance(lambda _: done.set() if sum(counts(host.query).values()) == 3 else None)
        host.reset_all()
        assert done.wait(10)


def test_views_rebuilt_too_early_are_rebuilt_again(tmp_path: Path) -> None:
    """The log says "void" before its transaction commits; what counts is the epoch that comes with the commit."""
    log, epoch = MemoryLog(), [0]
    log.add(history(6))
    with hosting(tmp_path, log, views=[Counter], epoch=lambda: epoch[0]) as host:
        host.start()
        host.wait(6, timeout=10)
        host.reset_all()  # inside the log's transaction: nothing has changed yet
        log.void, epoch[0] = {1, 2, 3}, 1
        done = threading.Event()
        host.on_advance(lambda _: done.set() if sum(counts(host.query).values()) == 4 else None)
        log.add(history(1, 30))  # the batch that voided them becomes visible
        assert done.wait(10)
        assert host.live("counter").epoch == 1


def test_a_changed_epoch_rebuilds_at_start(tmp_path: Path) -> None:
    """A reset that a crash swallowed is made up for: the log's epoch differs from the one the views were built with."""
    log = MemoryLog()
    log.add(history(6))
    with hosting(tmp_path, log, views=[Counter], epoch=lambda: 1) as host:
        host.catch_up()
    log.void = {6}
    with hosting(tmp_path, log, views=[Counter], epoch=lambda: 2) as host:
        host.catch_up()
        assert sum(counts(host.query).values()) == 5
        generation = host.live("counter").view.view.generation
    with hosting(tmp_path, log, views=[Counter], epoch=lambda: 2) as host:
        host.catch_up()
        assert host.live("counter").view.view.generation == generation
