"""Segments in memory for who reads while they come: a reader who is behind is waited for, a slow one is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from walytis_vault.adapters.storage import read_along
from walytis_vault.adapters.storage.read_along import KEPT, ReadAlong

WAIT_S = 30.0


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """Another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Held:
    """A `ReadAlong` with its lock, and one reader."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.along = ReadAlong(self.lock)
        with self.lock:
            self.along.begin()

    def put(self, number: int) -> None:
        """Bring a segment."""
        with self.lock:
            self.along.put(number, b"%d" % number)

    def get(self, number: int) -> bytes | None:
        """Read one."""
        with self.lock:
            return self.along.get(number)


def test_the_next_segment_waits_for_a_reader_who_is_behind(
    thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was not read is dropped while the reader is going on."""
    monkeypatch.setattr(read_along, "HOLD_S", WAIT_S)
    held, count = Held(), 5 * KEPT

    def bring() -> None:
        for number in range(count):
            held.put(number)

    bringing: Future[None] = thread.submit(bring)
    for number in range(count):
        with held.lock:
            while (found := held.along.get(number)) is None:
                held.along.wait(number)
        assert found == b"%d" % number
    bringing.result(WAIT_S)


def test_a_reader_who_stays_behind_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded, and after one wait in vain the segments come as fast as they can."""
    waits = []
    held = Held()
    monkeypatch.setattr(held.along._taken, "wait_for", lambda _, seconds: waits.append(seconds))
    for number in range(5 * KEPT):
        held.put(number)
    assert waits == [read_along.HOLD_S]
    assert [number for number in range(5 * KEPT) if held.get(number)] == list(range(4 * KEPT, 5 * KEPT))


def test_a_reader_who_caught_up_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was behind and reads what is kept has caught up."""
    waits = []
    held = Held()
    monkeypatch.setattr(held.along._taken, "wait_for", lambda _, seconds: waits.append(seconds))
    for number in range(KEPT + 2):
        held.put(number)
    assert held.get(KEPT + 1) is not None
    held.put(KEPT + 2)
    assert len(waits) == 2


def test_nothing_is_kept_for_nobody() -> None:
    """Without a reader, and after the last one, no memory is held."""
    held = Held()
    held.put(1)
    with held.lock:
        held.along.end()
    assert held.get(1) is None
    held.put(2)
    assert held.get(2) is None
