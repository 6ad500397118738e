"""A bus with an in-memory vault behind it, real sockets between, and clients of both kinds in front.

`Sync` drives an `AsyncClient` from ordinary code, so that one suite holds both clients to the same contract.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from support.memory_service import MemoryService
from walytis_vault.async_client import AsyncClient
from walytis_vault.bus.link import Link
from walytis_vault.bus.messages import Change
from walytis_vault.bus.protocol import BusLimits
from walytis_vault.bus.security import add_client, make_keys
from walytis_vault.bus.server import BusServer
from walytis_vault.client import Client


class World:
    """One home with a node that can be stopped and started."""

    def __init__(self, home: Path, *, limits: BusLimits | None = None, endpoint: str | None = None) -> None:
        self.home = home
        self.service = MemoryService()
        self.limits = limits
        self.keys = make_keys()
        self._endpoint = endpoint
        self._clients: list[Any] = []
        add_client(home / "bus", "local")
        self.server = self._new_server()
        self.endpoint = self.server.start()

    def _new_server(self) -> BusServer:
        folder = self.home / "bus"
        return BusServer(self.service, folder=folder, keys=self.keys, endpoint=self._endpoint, limits=self.limits)

    def stop(self) -> None:
        self.server.close()

    def start(self) -> None:
        self.server = self._new_server()
        self.endpoint = self.server.start()

    def restart(self) -> None:
        self.stop()
        self.start()

    def client(self, *, timeout: float = 10.0, key: str | None = None) -> Client:
        client = Client(self.home, timeout=timeout, key=key)
        self._clients.append(client)
        return client

    def sync(self, *, timeout: float = 10.0) -> Client:
        """An AsyncClient with the face of a Client."""
        client = Sync(self.home, timeout)
        self._clients.append(client)
        return client  # type: ignore[return-value]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.server.close()


class Sync:
    """An `AsyncClient` on an event loop in a thread of its own."""

    def __init__(self, home: Path, timeout: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = AsyncClient(home, timeout=timeout)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self.run(method(*args, **kwargs))

    def subscribe(
        self, view: str = "events", *, after: int = 0, until: int | None = None, **filters: Any
    ) -> Iterator[Change]:
        async def begin() -> Any:
            return self._client.subscribe(view, after=after, until=until, **filters)

        subscription = self.run(begin())
        while True:
            try:
                yield self.run(subscription.__anext__())
            except StopAsyncIteration:
                return

    def close(self) -> None:
        if self._thread.is_alive():
            self.run(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(2)
            self._loop.close()


def link_of(client: Client) -> Link:
    """The link below a client, for tests that lose or repeat messages."""
    return client._session.link
