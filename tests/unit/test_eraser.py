"""The eraser: what comes after the bytes are gone (views, backups, receipt) is made up for when it failed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.log_world import Device, founded, open_log
from support.view_world import ballot, content, proposed, published
from walytis_vault.adapters.storage.memory_store import MemoryContentStore
from walytis_vault.adapters.system import SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import StorageError, StorageFullError
from walytis_vault.domain.ids import ContentId
from walytis_vault.eraser import Eraser

DEVICE = Device("a")


class Dropper:
    """The views and backups: told what was erased; refuses as often as `refusals` has something to raise."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.refusals: list[Exception] = []
        self.done = threading.Event()

    def __call__(self, contents: list[bytes]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.told += contents
        self.done.set()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[VaultLog]:
    chain = MemoryNetwork(1).replica("a")
    log = open_log(tmp_path, chain, DEVICE, founded(chain, DEVICE))
    log.start()
    yield log
    log.close()


@pytest.fixture
def store(log: VaultLog) -> MemoryContentStore:
    """A store with contents 1 and 2, which are published and which ballots 1 and 2 have decided to forget."""
    store = MemoryContentStore(vault_id="v", randomness=SystemRandomness())
    for number in (1, 2):
        writer = store.writer(ContentId(content(number)), author=DEVICE.member)
        writer.write(b"data")
        writer.finish()
        log.recorder.append([ev.to_dcb(published(number))])
        log.recorder.append([ev.to_dcb(proposed(number, [number], [DEVICE.member]))])
    return store


def eraser_of(log: VaultLog, store: MemoryContentStore, dropper: Dropper) -> Eraser:
    return Eraser(log.recorder, store, device=DEVICE.device, clock=SystemClock(), drop_from_views=dropper)


def receipts(log: VaultLog) -> int:
    return sum(e.event.type == ev.ContentErased.TOPIC for e in log.recorder.read())


def test_views_that_could_not_be_told_are_told_with_the_next_try(log: VaultLog, store: MemoryContentStore) -> None:
    """The bytes are gone at the first try, so a repeat finds nothing to erase: it tells all the same, then signs."""
    dropper = Dropper()
    eraser = eraser_of(log, store, dropper)
    dropper.refusals = [StorageFullError("no space left"), StorageFullError("no space left")]
    for _ in range(2):
        with pytest.raises(StorageFullError):
            eraser.look()
        assert store.erased(ContentId(content(1)))
        assert receipts(log) == 0
    eraser.look()
    assert sorted(dropper.told) == sorted([content(1), content(2)])
    assert receipts(log) == 2
    eraser.look()
    assert len(dropper.told) == 2


def test_what_a_command_could_not_finish_is_finished_with_the_next(log: VaultLog, store: MemoryContentStore) -> None:
    """What is still to be told is told whichever ballot comes next."""
    dropper = Dropper()
    eraser = eraser_of(log, store, dropper)
    dropper.refusals = [StorageError("refused")]
    with pytest.raises(StorageError):
        eraser.settle([ballot(1)])
    eraser.settle([ballot(2)])
    assert sorted(dropper.told) == sorted([content(1), content(2)])


def test_a_bug_does_not_end_the_eraser(log: VaultLog, store: MemoryContentStore) -> None:
    """Whatever is raised after erasing is kept as the last error, and the thread goes on with the next event."""
    dropper = Dropper()
    eraser = eraser_of(log, store, dropper)
    dropper.refusals = [RuntimeError("a bug")]
    failed = threading.Event()
    look = eraser.look

    def watched() -> None:
        try:
            look()
        except RuntimeError:
            failed.set()
            raise

    eraser.look = watched  # type: ignore[method-assign]
    eraser.start()
    try:
        assert failed.wait(20)
        log.recorder.append([ev.to_dcb(published(3))])
        assert dropper.done.wait(20)
    finally:
        eraser.close()
