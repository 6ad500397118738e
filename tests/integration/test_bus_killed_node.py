"""A real node is killed again and again under programs that publish and follow: one effect each, no gap, no repeat."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.bus_world import link_of
from walytis_vault import AsyncClient, Client, Node
from walytis_vault.bus import pace
from walytis_vault.domain.errors import NotYetAvailableError, TransportError
from walytis_vault.node import create_vault

CLIENTS = 4
THREADS = 16
"""Publishes under way in each client."""
LARGE_EVERY = 25
"""Every so many publishes one is streamed, not sent inside its request; every other of them over the bulk socket."""


def content(number: int) -> bytes:
    """A few bytes; or 200 kB, or 1.6 MB."""
    large = 400_000 if number % (2 * LARGE_EVERY) == 0 else 50_000
    return number.to_bytes(4, "big") * (large if number % LARGE_EVERY == 0 else 1)


def lossy(client: Client, seed: int) -> Client:
    """Lose a fifth of what the node says to this client, and repeat another fifth; lose a tenth of what it says."""
    link = link_of(client)
    deliver, say = link.incoming, link.send_parts
    chance = random.Random(seed)

    def send_parts(parts: list[bytes | memoryview]) -> None:
        if chance.random() >= 0.1:
            say(parts)

    def incoming(parts: list[memoryview]) -> None:
        roll = chance.random()
        if roll >= 0.2:
            deliver(parts)
        if roll >= 0.8:
            deliver(parts)

    link.incoming = incoming  # type: ignore[method-assign]
    link.send_parts = send_parts  # type: ignore[method-assign]
    return client


def insist(work: Callable[[], str]) -> str:
    """Do it until it succeeds, as an application does that has its request id."""
    while True:
        try:
            return work()
        except (TransportError, NotYetAvailableError):
            continue


class Follower:
    """Follows a view in a thread until it has seen a position, and keeps what it saw."""

    def __init__(self, follow: Callable[[Follower], None]) -> None:
        self.positions: list[int] = []
        self.ids: list[str] = []
        self.last: int | None = None
        self._thread = threading.Thread(target=follow, args=(self,), daemon=True)
        self._thread.start()

    def take(self, position: int, ids: tuple[str, ...]) -> bool:
        """Note a change; True when it was the last one."""
        self.positions.append(position)
        self.ids += ids
        return self.last is not None and position >= self.last

    def finish(self) -> None:
        """Wait until the last change has come."""
        self._thread.join(60)
        assert not self._thread.is_alive(), f"it stands at {self.positions[-1:]} of {self.last}"


def follow_with_threads(home: Path, view: str) -> Callable[[Follower], None]:
    """A `Client` that follows."""

    def follow(follower: Follower) -> None:
        with Client(home) as client:
            for change in client.subscribe(view):
                if follower.take(change.position, change.ids):
                    return

    return follow


def follow_with_asyncio(home: Path, view: str) -> Callable[[Follower], None]:
    """An `AsyncClient` that follows."""

    async def run(follower: Follower) -> None:
        async with AsyncClient(home) as client:
            async for change in client.subscribe(view):
                if follower.take(change.position, change.ids):
                    return

    return lambda follower: asyncio.run(run(follower))


@pytest.mark.parametrize(
    ("publishes", "kills"), [(120, 1), pytest.param(10_000, 20, marks=[pytest.mark.long, pytest.mark.timeout(1500)])]
)
def test_every_publish_once_and_every_change_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publishes: int, kills: int
) -> None:
    """With requests and replies lost, replies doubled and the node killed under way, each content exists once, whole.

    Meanwhile subscribers of both kinds see every event and every change of a view once, in order.
    """
    monkeypatch.setattr(pace, "REPEAT", 0.5)
    home = tmp_path / "home"
    create_vault(home, network="loopback")
    node = Node.open(home)
    clients = [lossy(Client(home, timeout=10), seed) for seed in range(CLIENTS)]
    followers = [
        Follower(make(home, view))
        for make in (follow_with_threads, follow_with_asyncio)
        for view in ("events", "catalogue")
    ]
    done = itertools.count(1)
    progress = threading.Condition()
    reached = [0]

    def publish(number: int) -> str:
        client = clients[number % CLIENTS]
        data = content(number)
        key = number.to_bytes(16, "big")
        published = insist(lambda: client.publish(data, name=str(number), request_id=key).content_id)
        with progress:
            reached[0] = next(done)
            progress.notify_all()
        return published

    try:
        with ThreadPoolExecutor(CLIENTS * THREADS) as pool:
            futures = [pool.submit(publish, number) for number in range(1, publishes + 1)]
            for kill in range(1, kills + 1):
                with progress:
                    wanted = kill * publishes // (kills + 1)
                    assert progress.wait_for(lambda: reached[0] >= wanted, 300)  # noqa: B023
                node.kill()
                node = Node.open(home)
            receipts = [future.result() for future in futures]
        with Client(home) as client:
            assert len(set(receipts)) == publishes
            client.wait_for(client.status().position)
            rows = client.query("catalogue", limit=None)
            assert sorted(int(row.name) for row in rows) == list(range(1, publishes + 1))
            assert {row.content_id for row in rows} == set(receipts)
            for row in rows:
                if int(row.name) % LARGE_EVERY == 0:
                    assert client.request(row.content_id) == content(int(row.name))
            last = client.status().position
            for follower in followers:
                follower.last = last + 1
            extra = client.publish(b"the last one").content_id
            for follower in followers:
                follower.finish()
                assert sorted(i for i in follower.ids if not i.startswith("did:")) == sorted([*receipts, extra])
                assert follower.positions == sorted(set(follower.positions))
            for follower in followers[::2]:
                assert follower.positions == list(range(1, last + 2))
            report = client.audit(read_data=True, timeout=600)
            assert report["ok"]
            assert report["blocks"].get("refused", 0) == 0
    finally:
        for client in clients:
            client.close()
        node.close()
