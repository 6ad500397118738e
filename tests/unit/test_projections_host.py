"""The host: exactly once, woken and not polling, parking, crashing and closing; rebuilds are in another file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from eventsourcing.persistence import IntegrityError, Tracking

from support.counter_view import Counter, Ordered, counts, history
from support.memory_log import MemoryLog
from support.view_world import at, content, founded, hosting, random_history
from walytis_vault.domain import events as ev
from walytis_vault.domain import faults
from walytis_vault.domain.errors import (
    MisuseError,
    TimedOutError,
    UnknownIdError,
)
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.plugins import OWN


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    yield
    Counter.broken.clear()
    faults.install(None)


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
