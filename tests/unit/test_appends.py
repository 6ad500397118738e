"""Answering appends: whoever is woken wakes the next, and nobody who left breaks the chain."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from walytis_vault.adapters.walytis.appends import PendingAppend, answer_all, fail_all, wake_next
from walytis_vault.adapters.walytis.receipts import Appended
from walytis_vault.domain.errors import StorageError, TimedOutError


def pending(count: int) -> list[PendingAppend]:
    """Appends that wait for nothing but their answer."""
    return [PendingAppend([], [], None, None, 0) for _ in range(count)]


def waiters(appends: list[PendingAppend]) -> tuple[list[threading.Thread], dict[int, int]]:
    """Threads that wait for the answers, and what they got, by place."""
    got: dict[int, int] = {}

    def work(place: int) -> None:
        got[place] = appends[place].wait(20.0).last

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(appends))]
    for thread in threads:
        thread.start()
    return threads, got


def test_everyone_gets_the_own_answer() -> None:
    """Each of many waiting threads gets its own answer."""
    appends = pending(100)
    threads, got = waiters(appends)
    answer_all((a, Appended(first=n, last=n, reply=None)) for n, a in enumerate(appends))
    for thread in threads:
        thread.join(20.0)
    assert got == {n: n for n in range(100)}


def test_one_that_left_does_not_keep_the_others_waiting() -> None:
    """Appends that timed out before the answer came are passed over."""
    appends = pending(10)
    for gone in (0, 4, 5, 9):
        with pytest.raises(TimedOutError):
            appends[gone].wait(0.001)
    staying = [a for n, a in enumerate(appends) if n not in (0, 4, 5, 9)]
    threads, got = waiters(staying)
    answer_all((a, Appended(first=1, last=n, reply=None)) for n, a in enumerate(appends))
    for thread in threads:
        thread.join(20.0)
    assert sorted(got.values()) == [1, 2, 3, 6, 7, 8]


def test_one_that_leaves_after_it_was_settled_wakes_the_next() -> None:
    """An append whose time runs out between its answer and its waking still passes the turn on."""
    late, other = pending(2)
    to_wake: deque[PendingAppend] = deque()
    late.settle(Appended(first=1, last=1, reply=None), to_wake)
    other.settle(Appended(first=2, last=2, reply=None), to_wake)
    assert late.wait(0.001).last == 1  # nobody has woken it, and it takes its answer all the same
    threads, got = waiters([other])
    wake_next(to_wake)
    threads[0].join(20.0)
    assert got == {0: 2}


def test_only_the_first_answer_counts() -> None:
    """A failure of the group after it was answered changes nothing."""
    (append,) = pending(1)
    answer_all([(append, Appended(first=1, last=1, reply=None))])
    fail_all([append], StorageError("too late"))
    assert append.wait(1.0).last == 1
