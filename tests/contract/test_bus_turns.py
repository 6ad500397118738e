"""A program may start as many transfers at once as it likes: those beyond its share wait in the client."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.bus_world import World
from walytis_vault.bus.protocol import BusLimits
from walytis_vault.domain.errors import TimedOutError

LIMITS = BusLimits(refusals=8)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, limits=LIMITS)
    yield made
    made.close()


@pytest.mark.parametrize("restarts", [0, 2])
def test_many_threads_are_all_served(world: World, restarts: int) -> None:
    """128 threads that request and publish, small and large: none is refused, also when the node starts anew."""
    client = world.client(timeout=30)
    contents = {client.publish(data).content_id: data for data in (b"small", os.urandom(3 << 20))}
    large = os.urandom(300_000)

    def work(number: int) -> bool:
        if number % 8 == 0:
            return bool(client.publish(large).content_id)
        content, data = list(contents.items())[number % 2]
        return client.request(content) == data

    with ThreadPoolExecutor(128) as pool:
        done = pool.map(work, range(600))
        for _ in range(restarts):
            threading.Event().wait(0.2)
            world.restart()
        assert all(done)
    assert world.service.position == 2 + 75
    assert world.server.details()["totals"]["cut"] == 0


def test_whoever_waits_behind_what_does_not_move_is_told_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfers that do not get on keep their turns: a further one ends with an error in time, and later ones go on."""
    client = world.client(timeout=1.0)
    content = client.publish(b"x" * 10).content_id
    gate, opened = threading.Event(), world.service.open_content

    def stuck(*arguments: Any, **named: Any) -> Any:
        assert gate.wait(20)
        return opened(*arguments, **named)

    monkeypatch.setattr(world.service, "open_content", stuck)

    def held() -> None:
        with contextlib.suppress(TimedOutError):
            client.request(content)

    threads = [threading.Thread(target=held) for _ in range(16)]
    for thread in threads:
        thread.start()
    with pytest.raises(TimedOutError):
        client.request(content)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert client.request(content) == b"x" * 10
