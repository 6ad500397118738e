"""Many subscribers at once: of one client, and each over a connection of its own."""

from __future__ import annotations

import threading

import pytest
import zmq

from support.bus_world import World
from walytis_vault.bus import protocol as p
from walytis_vault.bus.calls import SubscribeCall
from walytis_vault.bus.protocol import CHANGES, Kind, pack
from walytis_vault.bus.security import load_key

CROWD = 500


def test_500_subscribers_share_the_work(world: World) -> None:
    """500 subscribers of one client get every change, no reader polls, and those at the same place share one read."""
    client = world.client()
    subscriptions = [client.subscribe("events") for _ in range(CROWD)]
    world.service.advance(5)
    for subscription in subscriptions:
        assert [next(subscription).position for _ in range(5)] == [1, 2, 3, 4, 5]
    settle = world.service.change_reads
    assert settle < CROWD // 5
    threading.Event().wait(0.5)
    assert world.service.change_reads == settle
    for subscription in subscriptions:
        subscription.close()


@pytest.mark.long
def test_500_connections_each_subscribed(world: World) -> None:
    """500 connections follow at once; each gets every change, once and in order, and another client is served."""
    key = load_key(world.home / "bus" / "local.key")
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * CROWD)
    sockets = []
    try:
        for number in range(1, CROWD + 1):
            s = context.socket(zmq.DEALER)
            sockets.append(s)
            s.linger, s.rcvtimeo = 0, 30_000
            s.curve_serverkey = world.keys.public.encode()
            s.curve_publickey, s.curve_secretkey = key.public_key.encode(), key.secret_key.encode()
            s.connect(world.endpoint)
            call = SubscribeCall(view="events", after=0, limit=256)
            s.send_multipart(pack(Kind.REQUEST, number.to_bytes(16, "big"), call))
        world.service.advance(20)
        seen: list[list[int]] = []
        for s in sockets:
            positions: list[int] = []
            while len(positions) < 20:
                message = p.split(s.recv_multipart(), body_cap=1 << 22, data_cap=1 << 22)
                assert message.kind is Kind.CHANGES
                positions += [change.position for change in CHANGES.decode(message.data)]
            seen.append(positions)
        assert seen == [list(range(1, 21))] * CROWD
        assert world.server.details()["subscriptions"] == CROWD
        assert world.client().status().position == 20
    finally:
        context.destroy(linger=0)
