"""Thousands of subscriptions that wait: no polling, and every event reaches each of them once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.domain.events import to_dcb

FOUNDING_EVENTS = 2
SUBSCRIBERS = 2_000


def test_thousands_of_idle_subscriptions_read_only_when_there_is_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thousand subscribers at the end of the log look at it once for each append, and never in between."""
    reads = [0]
    counted, listen = LogIndex.read, LogIndex.listen
    guard, waiting = threading.Lock(), threading.Semaphore(0)

    def read(self: LogIndex, *args: object) -> object:
        with guard:
            reads[0] += 1
        return counted(self, *args)  # type: ignore[arg-type]

    def listening(self: LogIndex, woken: threading.Event) -> None:
        listen(self, woken)
        waiting.release()

    monkeypatch.setattr(LogIndex, "read", read)
    monkeypatch.setattr(LogIndex, "listen", listening)
    device = Device("a")
    chain = MemoryNetwork(1).replica("a")
    log = open_log(tmp_path, chain, device, founded(chain, device))
    log.start()
    subscriptions = [log.recorder.subscribe(after=FOUNDING_EVENTS) for _ in range(SUBSCRIBERS)]
    seen: list[list[int]] = [[] for _ in subscriptions]

    def follow(number: int) -> None:
        seen[number] += [event.position for event in subscriptions[number]]

    def all_wait() -> None:
        for _ in range(SUBSCRIBERS):
            assert waiting.acquire(timeout=60)

    threads = [threading.Thread(target=follow, args=(n,)) for n in range(SUBSCRIBERS)]
    for thread in threads:
        thread.start()
    all_wait()
    assert reads[0] == 0
    for number in (1, 2):
        log.recorder.append([to_dcb(note(number))])
        all_wait()
        assert reads[0] == number * SUBSCRIBERS
    for subscription in subscriptions:
        subscription.stop()
    for thread in threads:
        thread.join(60)
    assert seen == [[FOUNDING_EVENTS + 1, FOUNDING_EVENTS + 2]] * SUBSCRIBERS
    assert reads[0] == 2 * SUBSCRIBERS
    log.close()
