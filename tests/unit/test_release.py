"""What waited for a cause is judged once the cause is there: also after a crash, in bounded parts, and asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis import block_verdicts, reconciler
from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import faults
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.errors import NotYetAvailableError, StorageFullError
from walytis_vault.domain.events import ClosedEventTable, ContentRestored, ContentRetracted, KeyAnnounced, VaultFounded
from walytis_vault.domain.ports import BlockRef

FOUNDING_EVENTS = 2


class Crash(BaseException):
    """What a planned crash raises."""


class World:
    """A vault of one; what its device writes is put on the chain by hand, in any order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = MemoryNetwork(1, manual=True)
        self.chain: MemoryChain = self.network.replica("a")
        self.device = Device("founder")
        self.root = founded(self.chain, self.device)
        self.tip = bytes(self.root)
        self.number = 1
        self.ground = self.chain.leaves()

    def open(self) -> VaultLog:
        """The log, not started."""
        return open_log(self.folder, self.chain, self.device, self.root)

    def batch(self) -> SignedBatch:
        """The device's next batch."""
        self.number += 1
        made = self.device.batch(self.chain.chain_id, [note(self.number)], number=self.number, previous=self.tip)
        self.tip = made.batch_id
        return made

    def put(self, batch: SignedBatch) -> BlockRef:
        """A block with it, beside all others."""
        return self.network.inject(batch.envelope(), parents=self.ground)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh vault."""
    return World(tmp_path)


def _on(point: str, time: int, error: BaseException) -> Callable[[str], None]:
    """Raise an error when a fault point is reached for the given time."""
    seen = [0]

    def hook(name: str) -> None:
        seen[0] += name == point
        if name == point and seen[0] == time:
            raise error

    return hook


@pytest.mark.parametrize("way", ["chain", "member"])
@pytest.mark.parametrize("error", [Crash(), StorageFullError("no room")])
def test_what_was_released_is_judged_after_any_failure_in_between(world: World, way: str, error: BaseException) -> None:
    """The cause is recorded and the node dies, or its disk is full, before what waited is: it is not forgotten."""
    log = world.open()
    first, second, third = world.batch(), world.batch(), world.batch()
    for batch in (third, second):
        world.put(batch)
    log.reconciler.catch_up()
    assert log.index.verdict_counts()["waiting"] == 2
    if way == "chain":
        world.put(first)
    come = log.reconciler.catch_up if way == "chain" else lambda: log.reconciler.accept([first.envelope()])
    faults.install(_on("reconcile.before_commit", 2 if way == "chain" else 1, error))
    try:
        with pytest.raises(type(error)):
            come()
    finally:
        faults.install(None)
    if isinstance(error, Crash):
        log.close()
        log = world.open()
    log.reconciler.catch_up()
    assert log.index.horizon == FOUNDING_EVENTS + 3
    assert "waiting" not in log.index.verdict_counts()
    log.close()


def test_a_released_block_that_cannot_be_read_now_is_read_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are gone when the cause comes; when they are back it enters."""
    log = world.open()
    first, second = world.batch(), world.batch()
    waiting = world.put(second)
    log.reconciler.catch_up()
    read = MemoryChain.read

    def failing(self: MemoryChain, ref: BlockRef, **how: float) -> bytes:
        if ref.key == waiting.key:
            raise NotYetAvailableError("no peer has it now")
        return read(self, ref, **how)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryChain, "read", failing)
        world.put(first)
        log.reconciler.catch_up()
        assert log.index.horizon == FOUNDING_EVENTS + 1
    log.close()
    log = world.open()
    log.reconciler.catch_up()
    assert log.index.horizon == FOUNDING_EVENTS + 2
    log.close()


def test_a_waiting_verdict_that_nothing_can_release_is_judged_again_at_start(world: World) -> None:
    """An index in which such a verdict was left behind heals."""
    log = world.open()
    first, second = world.batch(), world.batch()
    world.put(second)
    log.reconciler.catch_up()
    with log.index.database.transaction() as connection:
        connection.execute("DELETE FROM waiting")
    world.put(first)
    log.reconciler.catch_up()
    assert log.index.horizon == FOUNDING_EVENTS + 1
    log.close()
    log = world.open()
    log.reconciler.catch_up()
    assert log.index.horizon == FOUNDING_EVENTS + 2
    log.close()


def test_very_many_released_blocks_are_judged_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many waited for one batch, only so many of them are held in memory and in one transaction."""
    monkeypatch.setattr(reconciler, "CHUNK", 8)
    monkeypatch.setattr(reconciler, "CHUNK_BYTES", 5 * 3500)
    log = world.open()
    cause = world.batch()
    stranger = Device("stranger").batch(world.chain.chain_id, [note(1)], number=1, heads=[cause.batch_id])
    for number in range(100):
        junk = stranger.envelope()[:-3] + number.to_bytes(3, "big")
        world.network.inject(junk, parents=world.ground)
    log.reconciler.catch_up()
    assert log.index.verdict_counts()["waiting"] == 100
    read, held, most = MemoryChain.read, [0], [0]

    def counting(self: MemoryChain, ref: BlockRef, **how: float) -> bytes:
        held[0] += 1
        most[0] = max(most[0], held[0])
        return read(self, ref, **how)

    monkeypatch.setattr(MemoryChain, "read", counting)
    world.put(cause)
    faults.install(lambda name: held.__setitem__(0, 0) if name == "reconcile.before_commit" else None)
    try:
        log.reconciler.catch_up()
    finally:
        faults.install(None)
    assert log.index.verdict_counts()["refused"] == 100 + 5
    assert 1 < most[0] <= 6
    log.close()


def test_too_many_waiting_blocks_are_put_off_and_looked_at_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room is bounded, the longest waiting go first, and what was put off enters after the next start."""
    monkeypatch.setattr(block_verdicts, "MAX_PARKED", 10)
    monkeypatch.setattr(block_verdicts, "EVICT", 2)
    log = world.open()
    first, second = world.batch(), world.batch()
    world.put(second)
    stranger = Device("stranger")
    for number in range(20):
        junk = stranger.batch(world.chain.chain_id, [note(number)], number=1, heads=[number.to_bytes(32, "big")])
        world.put(junk)
        log.reconciler.catch_up()
    counts = log.index.verdict_counts()
    assert counts["waiting"] <= 10
    assert counts["waiting"] + counts["put off"] == 21
    world.put(first)
    log.reconciler.catch_up()
    assert log.index.horizon == FOUNDING_EVENTS + 1
    log.close()
    monkeypatch.setattr(block_verdicts, "MAX_PARKED", 1000)
    log = world.open()
    log.reconciler.catch_up()
    assert log.index.horizon == FOUNDING_EVENTS + 2
    log.close()


def test_an_unreadable_block_holds_up_no_other_and_is_fetched_aside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While peers are asked for one block the others enter; when it comes it enters by itself."""
    log = world.open()
    log.start()
    unread, came = world.batch(), threading.Event()
    key = world.put(unread).key
    read = MemoryChain.read

    def slow(self: MemoryChain, ref: BlockRef, *, timeout: float = 10.0) -> bytes:
        if ref.key == key and not came.is_set() and (timeout <= 0 or not came.wait(timeout)):
            raise NotYetAvailableError("no peer has sent it yet")
        return read(self, ref)

    monkeypatch.setattr(MemoryChain, "read", slow)
    told = threading.Event()
    log.reconciler.on_missing(told.set)
    child = world.batch()
    ref = world.put(child)
    log.reconciler.look()
    assert told.wait(10), "what is missing is told, so that somebody asks for it"
    assert log.index.verdict_counts()["waiting"] == 1
    assert log.index.horizon == FOUNDING_EVENTS
    came.set()
    log.reconciler.hint(ref)
    assert log.index.wait_beyond(FOUNDING_EVENTS + 1, timeout=15) == FOUNDING_EVENTS + 2
    assert log.reconciler.last_error is None
    log.close()


def test_nothing_that_goes_wrong_ends_the_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is shown, and the next look succeeds."""
    log = world.open()
    log.start()
    looked = threading.Semaphore(0)

    def failing(_self: MemoryChain, _but: object) -> list[BlockRef]:
        looked.release()
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(MemoryChain, "leaves", failing)
        for _ in range(2):
            log.reconciler.look()
            assert looked.acquire(timeout=10)
        assert log.reconciler.last_error == "ZeroDivisionError: a bug"
    world.put(world.batch())
    log.reconciler.look()
    assert log.index.wait_beyond(FOUNDING_EVENTS, timeout=15) == FOUNDING_EVENTS + 1
    log.close()


def test_what_only_a_newer_version_reads_enters_after_the_upgrade(world: World) -> None:
    """Its block is unreadable, not refused, and what stands on it waits; an upgraded node ends as a new one does."""
    older = ClosedEventTable([VaultFounded, KeyAnnounced, ContentRetracted])
    log = open_log(world.folder, world.chain, world.device, world.root, table=older)
    restored = world.device.batch(
        world.chain.chain_id, [ContentRestored(content_id=b"c" * 16)], number=2, previous=world.root
    )
    world.number, world.tip = 2, restored.batch_id
    world.put(restored)
    world.put(world.batch())
    world.network.inject(b"\2" + restored.envelope()[1:], parents=world.ground)
    for _ in range(2):
        log.reconciler.catch_up()
        assert log.index.verdict_counts() == {"accepted": 1, "refused": 5, "unreadable": 2, "waiting": 1}
        log.close()
        log = open_log(world.folder, world.chain, world.device, world.root, table=older)
    log.close()
    log = world.open()
    log.reconciler.catch_up()
    assert log.index.horizon == FOUNDING_EVENTS + 2
    assert log.index.verdict_counts() == {"accepted": 3, "refused": 5, "unreadable": 1}
    log.close()


def test_what_is_missing_at_start_comes_by_itself_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits for no block of others, and goes on to ask for it when it runs."""
    came, key = threading.Event(), world.put(world.batch()).key
    read = MemoryChain.read

    def slow(self: MemoryChain, ref: BlockRef, *, timeout: float = 10.0) -> bytes:
        if ref.key == key and (timeout <= 0 or not came.wait(timeout)) and not came.is_set():
            raise NotYetAvailableError("no peer has sent it yet")
        return read(self, ref)

    monkeypatch.setattr(MemoryChain, "read", slow)
    log = world.open()
    log.start()
    assert log.index.horizon == FOUNDING_EVENTS
    came.set()
    assert log.index.wait_beyond(FOUNDING_EVENTS, timeout=15) == FOUNDING_EVENTS + 1
    log.close()


def test_hints_are_heard_while_no_block_of_our_own_can_be_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of our own that is begun and never done, as on a full disk, makes nobody deaf to others' blocks."""
    monkeypatch.setattr(reconciler, "LOCAL_S", -1.0)
    monkeypatch.setattr(reconciler, "LOOK_EVERY_S", 3600.0)
    log = world.open()
    log.start()
    log.reconciler.hint(world.put(world.batch()))
    assert log.index.wait_beyond(FOUNDING_EVENTS, timeout=15) == FOUNDING_EVENTS + 1
    log.reconciler.local_begin()
    log.reconciler.hint(world.put(world.batch()))
    assert log.index.wait_beyond(FOUNDING_EVENTS + 1, timeout=15) == FOUNDING_EVENTS + 2
    log.close()
