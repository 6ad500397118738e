"""A log that dies at any step, of an append or of a catch-up, comes back with everything once and nothing by halves."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis import reconciler
from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import faults
from walytis_vault.domain.batch import decode_batch
from walytis_vault.domain.errors import UntrustedInputError, VaultError
from walytis_vault.domain.events import to_dcb
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ports import BlockRef

FOUNDING_EVENTS = 2
TOGETHER = 3
"""Events of one append."""
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Crash(BaseException):
    """The end of the process."""


class Death:
    """Ends everything when a fault point is reached for the n-th time; keeps the files as they were then."""

    def __init__(self, point: str, time: int, folder: Path) -> None:
        self._point, self._left, self._folder = point, time, folder
        self._lock = threading.Lock()
        self.came = threading.Event()

    @property
    def image(self) -> Path:
        """What lay on the disk."""
        return self._folder.with_name("image")

    def __call__(self, name: str) -> None:
        """The hook."""
        with self._lock:
            self._left -= name == self._point
            if self._left == 0 and not self.came.is_set():
                shutil.copytree(self._folder, self.image)
                self.came.set()
            if self.came.is_set():
                raise Crash


class Faulty(MemoryChain):
    """A replica with the fault points of the real chain."""

    def __init__(self, chain: MemoryChain) -> None:
        self.__dict__.update(chain.__dict__)

    def append(self, content: bytes) -> BlockRef:
        fault("chain.before_append")
        ref = super().append(content)
        fault("chain.appended")
        return ref


def _envelopes(chain: MemoryChain) -> list[bytes]:
    """What stands on the chain and is a batch."""
    found = []
    for ref in chain.blocks():
        content = chain.read(ref)
        try:
            decode_batch(content)
        except UntrustedInputError:
            continue
        found.append(content)
    return found


def _hold(log: VaultLog, chain: MemoryChain, acknowledged: list[int]) -> None:
    """Everything that was acknowledged is there, every batch in one block, every append whole."""
    assert set(Counter(_envelopes(chain)).values()) == {1}
    assert sorted(_envelopes(chain)) == sorted(log.index.envelopes_beyond({}, [log._device], 1000))
    events = list(log.recorder.read(after=FOUNDING_EVENTS))
    counts = Counter(event.event.data for event in events)
    assert all(count == 1 for count in counts.values())
    numbers = [int.from_bytes(event.event.data[-16:], "big") for event in events]
    for number in acknowledged:
        assert number in numbers
    for start in {number // TOGETHER for number in numbers}:
        assert {start * TOGETHER + i for i in range(TOGETHER)} <= set(numbers)


@pytest.mark.parametrize("time", [1, 2, 4])
@pytest.mark.parametrize(
    "point",
    [
        "append.before_index",
        "append.after_index",
        "chain.before_append",
        "chain.appended",
        "append.after_block",
        "append.after_mark",
    ],
)
def test_an_append_of_many_events_survives_death_at_every_step(tmp_path: Path, point: str, time: int) -> None:
    """What was acknowledged is there, what was not is there whole or not at all, and nothing is there twice."""
    chain = Faulty(MemoryNetwork(3).replica("a"))
    device = Device("a")
    root = founded(chain, device)
    log = open_log(tmp_path / "log", chain, device, root)
    log.start()
    acknowledged: list[int] = []
    death = Death(point, time, tmp_path / "log")
    faults.install(death)
    try:
        for number in range(0, 10 * TOGETHER, TOGETHER):
            try:
                log.recorder.append([to_dcb(note(n)) for n in range(number, number + TOGETHER)])
            except (Crash, VaultError):
                break
            acknowledged += range(number, number + TOGETHER)
            if point == "append.after_mark" and death.came.wait(1.0):
                break
        assert death.came.wait(10)
        log.close()
    except Crash:
        pass
    finally:
        faults.install(None)
    again = open_log(death.image, chain, device, root)
    again.start()
    last = max(again.recorder.append([to_dcb(note(1000 * TOGETHER + n)) for n in range(TOGETHER)]), 0)
    assert again.index.horizon == last
    _hold(again, chain, acknowledged)
    again.close()
    late = open_log(tmp_path / "late", chain, device, root)
    late.reconciler.catch_up()
    assert late.index.horizon == last
    _hold(late, chain, acknowledged)
    late.close()


@pytest.mark.parametrize("order", ["causes first", "causes last", "mixed"])
@pytest.mark.parametrize("point", ["reconcile.before_commit", "reconcile.committed"])
def test_a_catch_up_survives_death_at_every_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, point: str
) -> None:
    """Killed before and after each transaction in turn, also of those that judge what waited, nothing is missing."""
    monkeypatch.setattr(reconciler, "CHUNK", 4)
    network = MemoryNetwork(4, manual=True)
    chain, device = network.replica("a"), Device("a")
    root = founded(chain, device)
    ground, previous, batches = chain.leaves(), bytes(root), []
    for number in range(2, 14):
        batch = device.batch(chain.chain_id, [note(number)], number=number, previous=previous)
        previous = batch.batch_id
        batches.append(batch)
    chosen = {"causes first": batches, "causes last": batches[::-1], "mixed": batches[::2] + batches[1::2]}[order]
    log = open_log(tmp_path / "log", chain, device, root)
    judged = {"causes first": 0, "causes last": len(chosen) - 1, "mixed": len(chosen) // 2}[order]
    for number, batch in enumerate(chosen):
        network.inject(batch.envelope(), parents=ground)
        if number < judged:
            log.reconciler.catch_up()
    log.close()
    died, folder = 0, tmp_path / "log"
    for time in range(1, 30):
        target = tmp_path / f"run{time}" / "log"
        shutil.copytree(folder, target)
        log = open_log(target, chain, device, root)
        death = Death(point, time, target)
        faults.install(death)
        try:
            log.reconciler.catch_up()
        except Crash:
            died += 1
        finally:
            faults.install(None)
        log.close()
        again = open_log(death.image if death.came.is_set() else target, chain, device, root)
        again.reconciler.catch_up()
        assert again.index.horizon == FOUNDING_EVENTS + len(batches)
        assert again.index.verdict_counts().get("waiting", 0) == 0
        again.close()
        if not death.came.is_set():
            break
    assert died > 2
