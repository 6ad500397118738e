"""A storm of new connections: who is connected notices nothing, who is new waits, and the storm is bounded."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from support.bus_world import World
from support.raw_client import eventually
from walytis_vault.bus.endpoint import SOCKET_NAME
from walytis_vault.bus.gate import shut_name
from walytis_vault.bus.protocol import BusLimits
from walytis_vault.bus.security import make_keys
from walytis_vault.bus.server import BusServer
from walytis_vault.client import Client
from walytis_vault.domain.errors import AlreadyRunningError, BusyError, NoNodeError

LIMITS = BusLimits(connects=16)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, limits=LIMITS)
    yield made
    made.close()


class Strangers:
    """Connect again and again with keys that the node does not know, until they are told to stop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        context = zmq.Context()
        while not self._stop.is_set():
            held = [self._connect(context) for _ in range(20)]
            self._stop.wait(0.02)
            for one in held:
                one.close(0)
        context.destroy(0)

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        one, key = context.socket(zmq.DEALER), make_keys()
        one.curve_serverkey = self._world.keys.public.encode()
        one.curve_publickey, one.curve_secretkey = key.public.encode(), key.secret.encode()
        one.connect(self._world.endpoint)
        return one

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()


def times_shut(world: World) -> int:
    """How often the gate has shut."""
    return int(world.server.details()["totals"]["shut"])


def test_the_connected_go_on_and_the_new_come_in_later(world: World) -> None:
    """During the storm one client works on, another that is new gets in, and nobody is let in all the time."""
    client = world.client()
    content_id = client.publish(b"x").content_id
    storm = Strangers(world)
    try:
        assert eventually(lambda: times_shut(world) >= 2, 10)
        for _ in range(300):
            assert client.request(content_id) == b"x"
        with Client(world.home, timeout=10) as newcomer:
            assert newcomer.request(content_id) == b"x"
        assert world.server.details()["totals"]["cut"] == 0
    finally:
        storm.close()
    assert eventually((world.home / "bus" / SOCKET_NAME).exists)
    assert world.client().status().position == 1


def test_a_client_that_gives_up_is_told_that_the_node_is_busy(world: World) -> None:
    """And not that there is none."""
    path = world.home / "bus" / SOCKET_NAME
    path.rename(shut_name(path))
    with Client(world.home, timeout=0.5) as client, pytest.raises(BusyError, match="too many programs connect"):
        client.status()
    threading.Timer(0.3, lambda: shut_name(path).rename(path)).start()
    assert world.client().status().position == 0


def test_an_end_while_it_is_shut_leaves_nothing(world: World) -> None:
    """No file stays, no client waits for a node that is gone, and the next node starts."""
    client, storm = world.client(), Strangers(world)
    client.status()
    try:
        assert eventually((shut := shut_name(world.home / "bus" / SOCKET_NAME)).exists, 10)
    finally:
        storm.close()
    world.stop()
    assert not shut.exists()
    assert not (world.home / "bus" / SOCKET_NAME).exists()
    with pytest.raises(NoNodeError):
        Client(world.home, timeout=2).status()
    world.start()
    assert client.status().position == 0


def test_what_a_killed_node_left_is_cleared_and_a_living_one_is_respected(world: World) -> None:
    """The other name is looked at as the own one is."""
    path = world.home / "bus" / SOCKET_NAME
    path.rename(shut_name(path))
    with pytest.raises(AlreadyRunningError):
        BusServer(world.service, folder=world.home / "bus", keys=world.keys).start()
    shut_name(path).rename(path)
    world.stop()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(shut_name(path)))  # nobody listens there
    world.start()
    assert not shut_name(path).exists()
    assert world.client().status().position == 0
