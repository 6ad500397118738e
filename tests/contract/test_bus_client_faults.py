"""What goes wrong within a client stays where it went wrong: no other call fails for it, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bus_world import World, link_of
from support.raw_client import eventually
from walytis_vault.async_client import AsyncClient
from walytis_vault.bus import pace
from walytis_vault.bus.exchange_call import CallExchange
from walytis_vault.bus.exchange_download import DownloadExchange
from walytis_vault.bus.exchange_subscription import SubscriptionExchange
from walytis_vault.bus.link import Link
from walytis_vault.bus.protocol import BusLimits
from walytis_vault.client import Client
from walytis_vault.domain.errors import MisuseError, TransportError, VaultError

INFINITE = float("inf")


@pytest.mark.parametrize("timeout", [INFINITE, float("nan"), 1e300, -1.0, "x", True, threading.TIMEOUT_MAX])
def test_a_timeout_is_a_number_of_seconds(world: World, timeout: Any) -> None:
    """A timeout that no clock can wait for is refused by every call, and harms no other."""
    client = world.client()
    content_id = client.publish(b"x").content_id
    calls: list[Callable[[], object]] = [
        lambda: client.request(content_id, timeout=timeout),
        lambda: client.wait_for(0, timeout=timeout),
        lambda: client.audit(timeout=timeout),
        lambda: client.subscribe("events").next(timeout),
        lambda: Client(world.home, timeout=timeout),
    ]
    for call in calls:
        with pytest.raises(MisuseError, match="timeout"):
            call()
    assert client.wait_for(1, timeout=0) == 1
    assert client.request(content_id, timeout=1e6) == b"x"


@pytest.mark.parametrize("method", ["on_connected", "on_tick", "on_message"])
def test_what_one_call_raises_ends_that_call(world: World, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """An unexpected error of one call is that call's own; another one under way on the same client goes on."""
    client = world.client()
    client.status()
    world.service.latency = 0.3
    before = getattr(CallExchange, method)

    def broken(self: CallExchange, *arguments: Any) -> None:
        if self.id == b"b" * 16:
            raise OverflowError("unexpected")
        before(self, *arguments)

    monkeypatch.setattr(CallExchange, method, broken)
    done: list[object] = []
    other = threading.Thread(target=lambda: done.append(client.publish(b"x")))
    other.start()
    with pytest.raises(TransportError, match="unexpected"):
        client.publish(b"y", request_id=b"b" * 16)
    other.join(10)
    assert len(done) == 1


def test_nothing_is_lost_between_begin_and_close(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that begins while its client closes is answered or refused, never left waiting."""
    for _ in range(100):
        client = world.client()
        client.status()
        ended: list[object] = []

        def call(client: Client = client, ended: list[object] = ended) -> None:
            try:
                ended.append(client.status())
            except VaultError as e:
                ended.append(e)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        client.close()
        for thread in threads:
            thread.join(5)
        assert len(ended) == 4


def test_what_is_begun_after_the_last_look_is_refused(world: World) -> None:
    """A closed link takes nothing more, even from whoever looked before it closed."""
    client = world.client()
    link = link_of(client)
    client.status()
    client.close()
    link.post(lambda: pytest.fail("must not run"))
    assert not link._posted


def test_a_stream_that_begins_again_while_its_client_closes_ends(world: World) -> None:
    """A subscription and a download that ask again just then are ended like the others."""
    content_id = world.service.pretend(1 << 40)
    client = world.client()
    changes = client.subscribe("events")
    world.service.advance(1)
    assert next(changes).position == 1
    link = link_of(client)
    ended: list[object] = []

    def download() -> None:
        try:
            client.request(content_id, to=open("/dev/null", "wb"))  # noqa: SIM115
        except VaultError as e:
            ended.append(e)

    thread = threading.Thread(target=download)
    thread.start()
    assert eventually(lambda: world.server.details()["downloads"] == 1)
    going = threading.Event()

    def again() -> None:
        link._closed = True
        for exchange in list(link._exchanges.values()):
            if isinstance(exchange, SubscriptionExchange):
                exchange._again()
            elif isinstance(exchange, DownloadExchange):
                exchange._reopen()
        going.set()

    link.post(again)
    assert going.wait(5)
    thread.join(5)
    assert len(ended) == 1
    assert [change.position for change in changes] == [2]


def test_a_program_may_start_as_many_calls_as_it_likes(tmp_path: Path) -> None:
    """600 publishes at once are all done: those beyond what the node takes on at once wait in the client."""
    world = World(tmp_path, limits=BusLimits(peer_requests=256, client_requests=256))
    world.service.latency = 0.1

    async def gather() -> list[object]:
        async with AsyncClient(world.home) as client:
            return await asyncio.gather(*(client.publish(b"x") for _ in range(600)), return_exceptions=True)

    assert [e for e in asyncio.run(gather()) if isinstance(e, BaseException)] == []
    assert world.service.position == 600
    world.close()


def test_a_call_in_line_keeps_its_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for its turn until its time is over fails as any other, and is never sent."""
    client = world.client(timeout=0.5)
    client.status()
    link = link_of(client)
    monkeypatch.setitem(link._turns._most, "call", 1)
    world.service.latency = 2.0
    replies = [client._session.publish_small(bytes([n]), _options(), None) for n in range(3)]
    for reply in replies:
        with pytest.raises(VaultError):
            reply.result()
    assert eventually(lambda: world.service.position == 1)
    assert world.service.position == 1


def _options() -> Any:
    from walytis_vault.bus.messages import PublishOptions

    return PublishOptions()


def test_a_request_id_that_is_under_way(world: World) -> None:
    """The same id twice at once in one client is refused; neither call waits for ever."""
    world.service.latency = 0.3
    client = world.client()
    first = client._session.publish_small(b"x", _options(), b"i" * 16)
    second = client._session.publish_small(b"x", _options(), b"i" * 16)
    with pytest.raises(MisuseError, match="under way"):
        second.result()
    assert first.result().position == 1


def test_a_cancelled_call_is_not_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a task is cancelled its call is dropped, and the late reply harms nobody."""
    monkeypatch.setattr(pace, "REPEAT", 0.05)
    world.service.latency = 0.5

    async def run() -> int:
        async with AsyncClient(world.home) as client:
            await client.status()
            task = asyncio.create_task(client.publish(b"x"))
            while not world.server.details()["running"]:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            link: Link = client._session.link
            while link._exchanges:
                await asyncio.sleep(0)
            while world.server.details()["running"]:
                await asyncio.sleep(0)
            return (await client.status()).position

    assert asyncio.run(run()) == 1


def test_a_paused_subscriber_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that said nothing for longer than the node waits goes on where it was, without gap or repeat."""
    world = World(tmp_path, limits=BusLimits(idle=0.2))
    client = world.client()
    changes = client.subscribe("events")
    world.service.advance(3)
    assert [next(changes).position for _ in range(3)] == [1, 2, 3]
    assert eventually(lambda: world.server.details()["totals"]["requests"] >= 3)
    world.service.advance(2)
    assert [next(changes).position for _ in range(2)] == [4, 5]
    world.close()


def test_both_clients_have_the_same_verbs() -> None:
    """Each verb of `Client` is one of `AsyncClient`, with the same arguments and defaults."""

    def verbs(kind: type) -> dict[str, list[tuple[str, object, object]]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in methods
            if not name.startswith("_") or name == "__init__"
        }

    assert verbs(Client) == verbs(AsyncClient)
