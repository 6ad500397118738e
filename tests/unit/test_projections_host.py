"""The host: exactly once, woken and not polling, parking, rebuilding, swapping, crashing and closing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from eventsourcing.persistence import IntegrityError, Tracking

from support.memory_log import MemoryLog
from support.view_world import at, content, founded, hosting, published, random_history
from walytis_vault.domain import events as ev
from walytis_vault.domain import faults
from walytis_vault.domain.errors import (
    MisuseError,
    NotYetAvailableError,
    TimedOutError,
    UnknownIdError,
    ViewFailedError,
)
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.plugins import OWN
from walytis_vault.projections.store import Connection, Table


class CounterRow(msgspec.Struct, frozen=True, kw_only=True):
    """How often an author published."""

    author: str
    count: int


class Counter(View):
    """A third-party view: publications by author. Fails while `broken` says so."""

    name = "counter"
    row = CounterRow
    tables = (Table(name="rows", columns={"author": "blob", "n": "integer"}, primary_key=("author",)),)
    broken: ClassVar[set[bytes]] = set()

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.handlers = {ev.ContentPublished: self._published}

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        key = origin.author.encode()
        connection.execute(
            f"INSERT INTO {self.t('rows')} (author, n) VALUES (?, 1)"
            f" ON CONFLICT (author) DO UPDATE SET n = {self.t('rows')}.n + 1",
            (key,),
        )
        self.touch(key, position)
        if event.content_id in self.broken:
            raise ValueError("cannot count this one")

    def _rows(self, connection: Connection) -> dict[bytes, msgspec.Struct]:
        found = connection.execute(f"SELECT author, n FROM {self.t('rows')} ORDER BY author")
        return {bytes(a): CounterRow(author=bytes(a).decode(), count=int(n)) for a, n in found}

    def page(self, request: Request) -> Page:
        with self.view.store.read() as connection:
            return Page(rows=tuple(self._rows(connection).values()))

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        with self.view.store.read() as connection:
            return {k: r for k, r in self._rows(connection).items() if k in keys}

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        for key, row in self._rows(connection).items():
            if key >= low and (high is None or key < high):
                yield key, msgspec.msgpack.encode(row)


class Ordered(Counter):
    """The same, but it stops at the first event that fails."""

    name = "ordered"
    order_free = False


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    yield
    Counter.broken.clear()
    faults.install(None)


def counts(host_query: Callable[..., Page], view: str = "counter") -> dict[str, int]:
    return {r.author: r.count for r in host_query(view).rows if isinstance(r, CounterRow)}


def history(count: int, start: int = 0) -> list[ev.Recorded]:
    return [at(published(i), f"did:{'ab'[i % 2]}", i + 2) for i in range(start, start + count)]


def test_it_follows_the_log_without_being_asked(tmp_path: Path) -> None:
    """Events appended while it runs are in the views when `wait` returns, and callers are told."""
    log = MemoryLog()
    with hosting(tmp_path, log, views=[Catalogue, Counter]) as host:
        seen: list[int] = []
        stop = host.on_advance(seen.append)
        host.start()
        for number in range(5):
            position = log.add(history(3, number * 3))
            assert host.wait(position, timeout=10) >= position
        assert sum(counts(host.query).values()) == 15
        assert seen[-1] == 15
        assert seen == sorted(seen)
        stop()
        log.add(history(1, 50))
        host.wait(16, timeout=10)
        assert seen[-1] == 15


def test_waiting_is_bounded(tmp_path: Path) -> None:
    """A position that does not come in time, or never because the host closed, is a timeout of ours."""
    log = MemoryLog()
    with hosting(tmp_path, log) as host:
        host.start()
        with pytest.raises(TimedOutError, match="did not reach 1"):
            host.wait(1, timeout=0.01)

        def wait() -> None:
            with pytest.raises(TimedOutError):
                host.wait(1, timeout=60)

        waiting = threading.Thread(target=wait)
        waiting.start()
        host.close()
        waiting.join(10)
        assert not waiting.is_alive()
        host.close()
        with pytest.raises(MisuseError):
            host.start()


def test_void_events_are_passed_over(tmp_path: Path) -> None:
    """Gaps in the log do not hold up the position, also at its end."""
    log = MemoryLog()
    log.add(history(5))
    log.void = {2, 5}
    with hosting(tmp_path, log, views=[Counter], batch=2) as host:
        assert host.catch_up() == 5
        assert sum(counts(host.query).values()) == 3


def test_each_event_is_folded_once(tmp_path: Path) -> None:
    """A view refuses an event at or before its position, and a restarted host goes on where it was."""
    log = MemoryLog()
    log.add(history(4))
    with hosting(tmp_path, log, views=[Counter]) as host:
        host.catch_up()
        view = host.live("counter").view
        with pytest.raises(IntegrityError):
            view.process_event(history(1)[0], Tracking("log", 4))
        assert sum(counts(host.query).values()) == 4
    log.add(history(2, 4))
    with hosting(tmp_path, log, views=[Counter]) as host:
        assert host.position == 4
        assert host.catch_up() == 6
        assert sum(counts(host.query).values()) == 6


@pytest.mark.parametrize("point", ["projections.before_commit", "projections.after_commit"])
def test_a_crash_around_a_commit_loses_and_repeats_nothing(tmp_path: Path, point: str) -> None:
    """Whether it dies before or after a commit, every event is counted once after the restart."""
    log = MemoryLog()
    log.add(history(7))

    def crash(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with hosting(tmp_path, log, views=[Counter], batch=3) as host:
        faults.install(crash)
        with pytest.raises(KeyboardInterrupt):
            host.catch_up()
        faults.install(None)
    with hosting(tmp_path, log, views=[Counter], batch=3) as host:
        host.catch_up()
        assert sum(counts(host.query).values()) == 7


def test_a_failing_event_is_parked_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Only the view that failed lacks the event; status tells; a retry brings it in, late."""
    log = MemoryLog()
    log.add(history(6))
    Counter.broken.add(content(2))
    with hosting(tmp_path, log, views=[Catalogue, Counter]) as host:
        assert host.catch_up() == 6
        state = host.status()["counter"]
        assert (state.position, state.parked) == (6, 1)
        assert state.error == "position 3: ValueError: cannot count this one"
        assert host.status()["catalogue"].parked == 0
        assert len(host.query("catalogue").rows) == 6
        assert sum(counts(host.query).values()) == 5
        assert host.retry("counter") == 1
        before = host.status()["counter"].hash
        Counter.broken.clear()
        assert host.retry("counter") == 0
        after = host.status()["counter"]
        assert (after.parked, after.error) == (0, None)
        assert sum(counts(host.query).values()) == 6
        assert after.hash != before


def test_a_view_that_needs_order_stops_and_continues_after_a_retry(tmp_path: Path) -> None:
    """It holds up neither the others nor those who wait for a position."""
    log = MemoryLog()
    log.add(history(6))
    Counter.broken.add(content(2))
    with hosting(tmp_path, log, views=[Counter, Ordered]) as host:
        assert host.catch_up() == 6
        state = host.status()["ordered"]
        assert state.position == 2
        assert state.error is not None
        assert "position 3" in state.error
        Counter.broken.clear()
        host.retry("ordered")
        assert host.status()["ordered"].position == 6
        assert counts(host.query, "ordered") == {"did:a": 3, "did:b": 3}


def test_an_event_that_cannot_be_decoded_is_parked(tmp_path: Path) -> None:
    """Bytes of an unknown type do not stop the views."""
    log = MemoryLog()
    log.add(history(1))
    log.append([ev.LoggedEvent(type="from-the-future/9", data=b"", tags=[], origin=history(2)[1].origin)])
    log.add(history(1, 5))
    with hosting(tmp_path, log, views=[Counter]) as host:
        assert host.catch_up() == 3
        assert "from-the-future/9" in (host.status()["counter"].error or "")
        assert sum(counts(host.query).values()) == 2


def test_a_log_that_is_not_yet_readable_again_is_waited_for(tmp_path: Path) -> None:
    """After a crash the log may show less for a moment: the views stay where they are and nothing is folded twice."""
    log = MemoryLog()
    log.add(history(6))
    with hosting(tmp_path, log, views=[Counter]) as host:
        host.catch_up()
    shown = MemoryLog()
    shown.add(history(4))
    shown.unreadable = 2
    with hosting(tmp_path, shown, views=[Counter]) as host:
        assert host.catch_up() == 6
        shown.add(history(3, 4))
        assert host.catch_up() == 7
        assert sum(counts(host.query).values()) == 7


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


def test_hashes_survive_a_restart_and_follow_what_came_after(tmp_path: Path) -> None:
    """The saved parts of a hash give the same result as reading everything."""
    log = MemoryLog()
    events = random_history(5, 60)
    log.add(events[:30])
    with hosting(tmp_path, log) as host:
        host.catch_up()
        host.status()
    log.add(events[30:])
    with hosting(tmp_path, log) as host:
        host.catch_up()
        saved = {n: s.hash for n, s in host.status().items()}
        for name in host.names:
            host.live(name).reset_hash()
        assert {n: s.hash for n, s in host.status().items()} == saved


def test_names_must_differ_and_be_known(tmp_path: Path) -> None:
    """Two views of one name, and questions about views that do not exist, are refused."""
    log = MemoryLog()
    with pytest.raises(MisuseError, match="same name"), hosting(tmp_path, log, views=[Counter, Counter]):
        pass
    with hosting(tmp_path, log) as host:
        for ask in (host.query, host.rebuild, host.retry, host.replay):
            with pytest.raises(UnknownIdError, match="there are ballots, catalogue"):
                ask("nonsense")


def test_replay_shows_a_view_as_it_was(tmp_path: Path) -> None:
    """At an earlier position, or by the authors' clocks; the live view is untouched."""
    log = MemoryLog()
    log.add([at(founded(), "did:a", 1), *history(6)])
    with hosting(tmp_path, log, batch=2) as host:
        host.catch_up()
        with host.replay("catalogue", until=4) as then:
            assert then.position == 4
            assert len(then.query().rows) == 3
            assert len(then.query(limit=2).rows) == 2
        with host.replay("catalogue", until_ms=1_700_000_000_000 + 3_000) as then:
            assert len(then.query().rows) == 2
        with host.replay("timeline", until=10**9) as then:
            assert len(then.query().rows) == 7
        assert len(host.query("catalogue").rows) == 6


def test_our_views_have_distinct_names() -> None:
    """The set of own views is what the product promises."""
    assert [v.name for v in OWN] == ["catalogue", "timeline", "ballots", "members", "holders"]
