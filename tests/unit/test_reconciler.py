"""Catch-up finds every block, whatever the listener does, and goes on where a crash stopped it (design.md 3.8)."""

from __future__ import annotations

import gc
import os
import random
import threading
from pathlib import Path

import pytest

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis import reconciler
from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import faults
from walytis_vault.domain.errors import NotYetAvailableError
from walytis_vault.domain.events import MemberAdmitted, to_dcb
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.ports import BlockRef

FOUNDING_EVENTS = 2


class Crash(BaseException):
    """What a planned crash raises."""


class Pair:
    """Two members with a replica each; b's log is opened by the test."""

    def __init__(self, folder: Path, *, manual: bool = False) -> None:
        self.folder = folder
        self.network = MemoryNetwork(3, manual=manual)
        self.a, self.b = Device("a"), Device("b")
        self.chain_a: MemoryChain = self.network.replica("a")
        self.chain_b: MemoryChain = self.network.replica("b")
        self.root: BatchId = founded(self.chain_a, self.a)
        self.log_a = open_log(folder / "a", self.chain_a, self.a, self.root)
        self.log_a.start()
        keys = self.b.keys(self.chain_a.chain_id)
        self.log_a.recorder.append([to_dcb(MemberAdmitted(member=keys.member, keys=keys, invitation=b"i" * 32))])

    def open_b(self) -> VaultLog:
        """b's log, not started."""
        return open_log(self.folder / "b", self.chain_b, self.b, self.root)

    def write(self, count: int) -> int:
        """Append on a; returns the last position."""
        return max(self.log_a.recorder.append([to_dcb(note(n))]) for n in range(count))


def _visible(log: VaultLog) -> list[tuple[object, bytes]]:
    return sorted((e.event.origin.order, e.event.data) for e in log.recorder.read())  # type: ignore[attr-defined]


@pytest.mark.parametrize("listener", ["nothing", "everything twice", "any order"])
def test_nothing_is_missed_whatever_the_listener_does(
    tmp_path: Path, listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events arrive once each when the listener is dead, repeats itself, or hints in any order."""
    monkeypatch.setattr(reconciler, "LOOK_EVERY_S", 0.05 if listener == "nothing" else 3600.0)
    monkeypatch.setattr(MemoryChain, "listen", lambda _self, _callback: lambda: None)
    pair = Pair(tmp_path)
    log_b = pair.open_b()
    log_b.start()
    known = {ref.key for ref in pair.chain_b.blocks()}
    last = pair.write(40)
    pair.network.gossip()
    hints = [ref for ref in pair.chain_b.blocks() if ref.key not in known] if listener != "nothing" else []
    hints = [ref for ref in hints for _ in range(2)]
    if listener == "any order":
        random.Random(5).shuffle(hints)
    for ref in hints:
        log_b.reconciler.hint(ref)
    assert log_b.index.wait_beyond(last - 1, timeout=20) == last
    assert _visible(log_b) == _visible(pair.log_a)
    log_b.close()
    pair.log_a.close()


def test_a_crash_in_a_catch_up_costs_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catch-up that is cut off before a commit goes on at the next start; nothing is doubled or lost."""
    monkeypatch.setattr(reconciler, "CHUNK", 8)
    pair = Pair(tmp_path)
    last = pair.write(60)
    pair.network.gossip()
    log_b = pair.open_b()
    passes = iter(range(100))

    def crash(point: str) -> None:
        if point == "reconcile.before_commit" and next(passes) == 4:
            raise Crash

    faults.install(crash)
    try:
        with pytest.raises(Crash):
            log_b.reconciler.catch_up()
    finally:
        faults.install(None)
    kept = log_b.index.horizon
    log_b.close()
    assert 0 < kept < last
    again = pair.open_b()
    again.start()
    assert again.index.horizon == last
    assert _visible(again) == _visible(pair.log_a)
    again.close()
    pair.log_a.close()


def test_batches_from_a_member_get_in_while_a_catch_up_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catch-up, however long, makes a member wait for one chunk at most; what is known by then is not doubled."""
    monkeypatch.setattr(reconciler, "CHUNK", 8)
    monkeypatch.setattr(reconciler, "ACCEPT_WAIT_S", 0.05)
    pair = Pair(tmp_path)
    last = pair.write(40)
    pair.network.gossip()
    sent = pair.log_a.index.envelopes_beyond({}, [pair.a.device], 30)
    log_b = pair.open_b()
    taken: list[bool] = []
    log_b.reconciler._progress = lambda _judged: taken.append(log_b.reconciler.accept(sent))
    assert log_b.reconciler.catch_up() > 40
    assert len(taken) > 3
    assert not any(taken)
    assert log_b.index.horizon == last
    assert _visible(log_b) == _visible(pair.log_a)
    log_b.close()
    pair.log_a.close()


def test_what_comes_between_catching_up_and_listening_is_found(tmp_path: Path) -> None:
    """A block that arrives after the first look and before anybody listens is not left to the next regular look."""
    pair = Pair(tmp_path)
    pair.network.gossip()
    log_b = pair.open_b()
    log_b.reconciler.catch_up()
    last = pair.write(1)
    pair.network.gossip()
    log_b.reconciler.start()
    assert log_b.index.wait_beyond(last - 1, timeout=15) == last
    log_b.close()
    pair.log_a.close()


def test_a_start_with_nothing_missed_reads_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the leaves are known, a start judges nothing."""
    pair = Pair(tmp_path)
    pair.write(30)
    pair.log_a.close()
    log = open_log(tmp_path / "a", pair.chain_a, pair.a, pair.root)
    monkeypatch.setattr(MemoryChain, "read", lambda *_, **__: pytest.fail("a block was read"))
    assert log.reconciler.catch_up() == 0
    log.close()


def test_two_writers_see_each_other_in_causal_order(tmp_path: Path) -> None:
    """Both replicas write at once; each ends with all events, in an order in which causes come first."""
    pair = Pair(tmp_path)
    log_b = pair.open_b()
    log_b.start()
    assert log_b.index.wait_beyond(FOUNDING_EVENTS, timeout=10) > FOUNDING_EVENTS
    writers = [
        threading.Thread(target=lambda log=log: [log.recorder.append([to_dcb(note(n))]) for n in range(30)])
        for log in (pair.log_a, log_b)
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join(30)
    total = FOUNDING_EVENTS + 1 + 60
    for log in (pair.log_a, log_b):
        pair.network.gossip()
        assert log.index.wait_beyond(total - 1, timeout=20) == total
        depths: dict[str, int] = {}
        for found in log.recorder.read():
            origin = found.event.origin  # type: ignore[attr-defined]
            assert origin.number > depths.get(origin.device, 0) or origin.index > 0
            depths[origin.device] = origin.number
    assert _visible(log_b) == _visible(pair.log_a)
    log_b.close()
    pair.log_a.close()


def _resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [1_500, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(3000)])])
def test_a_long_absence_is_caught_up_in_bounded_memory(tmp_path: Path, count: int) -> None:
    """Thousands of missed blocks are judged in one go, with progress, and without memory that grows with them."""
    network = MemoryNetwork(5, manual=True)
    device = Device("a")
    chain = network.replica("a")
    root = founded(chain, device)
    previous, numbers = bytes(root), random.Random(1)
    for number in range(2, count + 2):
        batch = device.batch(chain.chain_id, [note(numbers.randrange(1 << 60))], number=number, previous=previous)
        chain.append(batch.envelope())
        previous = batch.batch_id
    told: list[int] = []
    log = open_log(tmp_path / "late", network.replica("late"), device, root)
    memory: list[int] = []

    def progress(judged: int) -> None:
        told.append(judged)
        memory.append(_resident())

    log.reconciler._progress = progress
    network.gossip()
    gc.collect()
    before = _resident()
    log.reconciler.catch_up()
    assert log.index.horizon == count + FOUNDING_EVENTS
    assert told == sorted(told)
    assert len(told) >= count // reconciler.CHUNK - 1
    assert max(memory) - before < 48 << 20
    log.close()


def test_what_lies_below_a_block_of_our_own_is_found_after_a_crash(tmp_path: Path) -> None:
    """Blocks came, were not judged, an own block was made on top, and the node died: the next start finds them."""
    pair = Pair(tmp_path, manual=True)
    log_b = pair.open_b()
    pair.network.deliver()
    log_b.reconciler.catch_up()
    log_b.writer.start()
    position = pair.write(3)
    pair.network.deliver()
    log_b.recorder.append([to_dcb(note(1000))])
    log_b.recorder.append([to_dcb(note(1001))])
    log_b.close()
    log_b = pair.open_b()
    log_b.reconciler.catch_up()
    assert log_b.index.horizon == position + 2
    log_b.reconciler.catch_up()
    assert log_b.index.overdue.left(lambda _key: False) == []
    log_b.close()
    pair.log_a.close()


def test_a_block_that_could_not_be_read_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its children are judged and wait for it; when it can be read, and after a restart too, all of them enter."""
    pair = Pair(tmp_path, manual=True)
    log_b = pair.open_b()
    position = pair.write(3)
    pair.network.deliver()
    unread = next(ref for ref in pair.chain_a.blocks() if note(0).content_id in pair.chain_a.read(ref))
    read = type(pair.chain_b).read

    def failing(self: MemoryChain, ref: BlockRef, **how: float) -> bytes:
        if ref.key == unread.key:
            raise NotYetAvailableError("no peer has it now")
        return read(self, ref, **how)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryChain, "read", failing)
        log_b.reconciler.catch_up()
        assert log_b.index.horizon < position
    log_b.close()
    log_b = pair.open_b()
    log_b.reconciler.catch_up()
    assert log_b.index.horizon == position
    log_b.close()
    pair.log_a.close()
