"""Who makes a batch: a lone caller itself, else the writer thread; and what happens when no block can be made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis import writer
from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import faults
from walytis_vault.domain.errors import StorageFullError, TransportError
from walytis_vault.domain.events import to_dcb
from walytis_vault.domain.ports import BlockRef

FOUNDING_EVENTS = 2


class Unlucky(MemoryChain):
    """A replica that makes no block while `error` is set; `makers` are the threads that made one."""

    error: Exception | None = None

    def __init__(self, chain: MemoryChain) -> None:
        self.__dict__.update(chain.__dict__)
        self.makers: list[str] = []
        self.refused = threading.Semaphore(0)

    def append(self, content: bytes) -> BlockRef:
        if self.error is not None:
            self.refused.release()
            raise self.error
        self.makers.append(threading.current_thread().name)
        return super().append(content)


@pytest.fixture
def chain() -> Unlucky:
    """An in-memory chain whose blocks can be made to fail."""
    return Unlucky(MemoryNetwork(1).replica("a"))


@pytest.fixture
def log(tmp_path: Path, chain: Unlucky) -> Iterator[VaultLog]:
    """A started log on it."""
    device = Device("a")
    log = open_log(tmp_path, chain, device, founded(chain, device))
    log.start()
    chain.makers.clear()
    yield log
    log.close()


def _numbers(log: VaultLog) -> list[int]:
    return [event.position for event in log.recorder.read(after=FOUNDING_EVENTS)]


def test_a_lone_caller_makes_the_block_itself(log: VaultLog, chain: Unlucky, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the writer thread has nothing to do, one append after the other wakes no other thread."""
    monkeypatch.setattr(writer, "IDLE_S", 3600.0)
    log.recorder.append([to_dcb(note(0))])
    pause, left = threading.Event(), 1000
    while not log.writer._idle and left:
        pause.wait(0.01)
        left -= 1
    chain.makers.clear()
    for number in range(1, 20):
        log.recorder.append([to_dcb(note(number))])
    assert chain.makers == [threading.current_thread().name] * 19


def test_what_a_caller_could_not_finish_the_thread_does(log: VaultLog, chain: Unlucky) -> None:
    """A block that fails at first is made later, and the caller gets its answer then."""
    log.recorder.append([to_dcb(note(0))])
    chain.error = TransportError("nobody there")
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(log.recorder.append([to_dcb(note(n))]))) for n in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for _ in range(2):
        assert chain.refused.acquire(timeout=10)
    chain.error = None
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [FOUNDING_EVENTS + n for n in (2, 3, 4)]
    assert _numbers(log) == [FOUNDING_EVENTS + n for n in (1, 2, 3, 4)]


def test_a_full_disk_is_told_at_once_and_the_log_goes_on_afterwards(log: VaultLog, chain: Unlucky) -> None:
    """Everyone who waits hears of the full disk; what was recorded is sent when there is room, once."""
    log.recorder.append([to_dcb(note(0))])
    chain.error = StorageFullError("no space left")
    with pytest.raises(TransportError, match=r"recorded here.*no space left"):
        log.recorder.append([to_dcb(note(1))])
    with pytest.raises(StorageFullError, match="no space left"):
        log.recorder.append([to_dcb(note(2))])
    chain.error = None
    last = log.recorder.append([to_dcb(note(3))])
    assert [log.index.horizon, *_numbers(log)] == [last, *range(FOUNDING_EVENTS + 1, last + 1)]
    assert last == FOUNDING_EVENTS + 3
    assert len(chain.makers) == 3


def test_a_caller_that_is_interrupted_leaves_nothing_undone(log: VaultLog, chain: Unlucky) -> None:
    """A caller that dies between recording and the block has its batch finished by the thread."""
    log.recorder.append([to_dcb(note(0))])

    class Interrupt(BaseException):
        pass

    def once(name: str) -> None:
        if name == "append.after_index" and threading.current_thread() is threading.main_thread():
            raise Interrupt

    faults.install(once)
    try:
        with pytest.raises(Interrupt):
            log.recorder.append([to_dcb(note(1))])
    finally:
        faults.install(None)
    assert log.index.wait_beyond(FOUNDING_EVENTS + 1, timeout=10) == FOUNDING_EVENTS + 2
    assert log.recorder.append([to_dcb(note(2))]) == FOUNDING_EVENTS + 3
