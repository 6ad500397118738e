"""eventsourcing's own conformance suite for `DCBRecorder`, on a chain in memory and on a real Walytis node."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from eventsourcing.dcb.api import DCBAppendCondition, DCBEvent, DCBQuery, DCBQueryItem
from eventsourcing.dcb.tests import DCBRecorderTestCase
from eventsourcing.persistence import IntegrityError

from support.log_world import Device, OpenEventTable, founded, note, open_log
from support.walytis_child import WalytisChild
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.errors import MisuseError
from walytis_vault.domain.events import EventTable, to_dcb
from walytis_vault.domain.ports import Chain

FOUNDING_EVENTS = 2
NewLog = Callable[..., VaultLog]


def _contend(
    log: VaultLog,
    gate: threading.Barrier,
    events: list[DCBEvent],
    condition: DCBAppendCondition,
    outcomes: list[bool],
) -> None:
    gate.wait(10)
    try:
        log.recorder.append(events, condition)
        outcomes.append(True)
    except IntegrityError:
        outcomes.append(False)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalytisChild]:
    """One real node for all tests of this module."""
    child = WalytisChild(tmp_path_factory.mktemp("node"))
    yield child
    child.kill()


@pytest.fixture(params=["memory", "walytis"])
def new_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewLog]:
    """Makes started logs of fresh vaults on one kind of chain, and closes them."""
    made: list[VaultLog] = []

    def make(table: EventTable) -> VaultLog:
        chain: Chain
        if request.param == "memory":
            chain = MemoryNetwork(len(made)).replica("a")
        else:
            chain = request.getfixturevalue("node").create_chain(uuid.uuid4().hex)
        device = Device("a")
        log = open_log(tmp_path / str(len(made)), chain, device, founded(chain, device), table=table)
        made.append(log)
        log.start()
        return log

    yield make
    for log in made:
        log.close()


def test_append_and_read_conform(new_log: NewLog) -> None:
    """The library's suite for append, conditions and read passes, after the two founding events."""
    log = new_log(OpenEventTable())
    DCBRecorderTestCase()._test_append_read(log.recorder, initial_position=FOUNDING_EVENTS)


def test_append_and_subscribe_conform(new_log: NewLog) -> None:
    """The library's suite for subscriptions passes."""
    log = new_log(OpenEventTable())
    DCBRecorderTestCase()._test_append_subscribe(log.recorder, initial_position=FOUNDING_EVENTS)


def test_one_of_many_contenders_for_a_condition_wins(new_log: NewLog) -> None:
    """Sixteen threads append on the same condition at once: exactly one succeeds, in each of several rounds."""
    log = new_log(OpenEventTable())
    for round_ in range(5):
        tag = f"seat-{round_}"
        condition = DCBAppendCondition(fail_if_events_match=DCBQuery(items=[DCBQueryItem(tags=[tag])]))
        gate = threading.Barrier(16)
        outcomes: list[bool] = []
        seat = [DCBEvent(type="seat-taken", data=b"", tags=[tag])]

        threads = [threading.Thread(target=_contend, args=(log, gate, seat, condition, outcomes)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(outcomes) == [False] * 15 + [True]
        assert len(list(log.recorder.read(condition.fail_if_events_match))) == 1


def test_subscriptions_replay_and_follow_without_gap_or_repeat(new_log: NewLog) -> None:
    """Subscribers that start at any position see every later event exactly once while writers are busy."""
    log = new_log(OpenEventTable())
    total = FOUNDING_EVENTS + 4 * 25
    seen: dict[int, list[int]] = {after: [] for after in (0, 1, 5, 40)}

    def follow(after: int) -> None:
        with log.recorder.subscribe(after=after) as subscription:
            for event in subscription:
                seen[after].append(event.position)
                if event.position == total:
                    return

    def write(writer: int) -> None:
        for number in range(25):
            log.recorder.append([DCBEvent(type="noted", data=bytes([writer, number]), tags=[f"w{writer}"])])

    threads = [threading.Thread(target=follow, args=(after,)) for after in seen]
    threads += [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {
        after: positions == list(range(after + 1, total + 1)) for after, positions in seen.items()
    } == dict.fromkeys(seen, True)


def test_the_product_table_is_closed(new_log: NewLog) -> None:
    """An event type that the vault does not know is refused before anything is recorded."""
    from walytis_vault.domain.events import PRODUCT_EVENTS

    log = new_log(PRODUCT_EVENTS)
    with pytest.raises(MisuseError, match="unknown event type"):
        log.recorder.append([DCBEvent(type="os:system", data=b"", tags=[])])
    assert log.recorder.append([to_dcb(note(1))]) == FOUNDING_EVENTS + 1


def test_a_stopped_subscription_ends(new_log: NewLog) -> None:
    """Stopping from another thread ends an iteration that waits."""
    log = new_log(OpenEventTable())
    subscription = log.recorder.subscribe(after=FOUNDING_EVENTS)
    ended = threading.Event()

    def follow() -> None:
        assert list(subscription) == []
        ended.set()

    threading.Thread(target=follow).start()
    subscription.stop()
    assert ended.wait(10)
