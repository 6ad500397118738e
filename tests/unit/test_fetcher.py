"""When contents are fetched: a request does not wait behind what is fetched unasked, and nothing is fetched twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from walytis_vault.domain.errors import NotYetAvailableError
from walytis_vault.domain.ids import ContentId
from walytis_vault.peers.fetcher import EAGER_WORKERS, Fetcher, FetchRule, _Wish

WAIT_S = 20.0


class Index:
    """A log index that never grows."""

    def listen(self, _wake: threading.Event) -> None:
        """Nothing will be told."""

    def unlisten(self, _wake: threading.Event) -> None:
        """Nothing was told."""


class Log:
    """A log without events."""

    index = Index()


class Network:
    """One connected node."""

    def links(self) -> list[str]:
        """Somebody."""
        return ["somebody"]

    def on_greeted(self, _callback: Callable[[], None]) -> None:
        """Nobody else comes."""


class Transfers:
    """Transfers that wait until the test lets them go on."""

    def __init__(self) -> None:
        self.go_on = {content_id: threading.Event() for content_id in map(name, range(EAGER_WORKERS + 1))}
        self.begun: Counter[bytes] = Counter()
        self.failing: set[bytes] = set()

    def fetch(self, content_id: ContentId, _opened: object) -> None:
        """Begin, wait, end."""
        self.begun[content_id] += 1
        assert self.go_on[content_id].wait(WAIT_S)
        if content_id in self.failing:
            raise NotYetAvailableError("nobody holds it")

    def close(self) -> None:
        """Nothing runs on its own."""


def name(number: int) -> ContentId:
    """A content id."""
    return ContentId(number.to_bytes(16, "big"))


@pytest.fixture
def transfers() -> Transfers:
    """What the fetcher calls."""
    return Transfers()


@pytest.fixture
def fetcher(transfers: Transfers) -> Iterator[Fetcher]:
    """A fetcher whose unasked fetches are all under way or in line; nothing happens but by the test."""
    log, network, store, moves = cast("Any", (Log(), Network(), None, transfers))
    made = Fetcher(log, store, network, moves, FetchRule(mode="all"))
    made._wishes = {content_id: _Wish(size=1) for content_id in transfers.go_on}
    made._try_wishes()
    yield made
    for event in transfers.go_on.values():
        event.set()
    made.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_overtakes_what_waits_in_line(fetcher: Fetcher, transfers: Transfers, fails: bool) -> None:
    """A content in line is fetched at once when it is asked for, once; if that fails, it stays wanted."""
    last = name(EAGER_WORKERS)
    transfers.go_on[last].set()
    if fails:
        transfers.failing.add(last)
        with pytest.raises(NotYetAvailableError):
            fetcher.open(last, timeout=WAIT_S)
    else:
        assert fetcher.open(last, timeout=WAIT_S) is None
    assert transfers.begun[last] == 1
    for event in transfers.go_on.values():
        event.set()
    fetcher._eager.shutdown(wait=True)
    assert transfers.begun[last] == 1
    assert last in fetcher._wishes


def test_a_request_joins_what_is_under_way(fetcher: Fetcher, transfers: Transfers) -> None:
    """A content that is being fetched unasked is not fetched again for a request."""
    first = name(0)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(fetcher.open(first, timeout=WAIT_S)))
    asking.start()
    transfers.go_on[first].set()
    asking.join(WAIT_S)
    assert answers == [None]
    assert transfers.begun[first] == 1
