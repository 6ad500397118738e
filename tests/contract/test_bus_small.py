"""A small content is one message there and one back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.bus_world import World
from support.raw_client import Raw, eventually, ident
from walytis_vault.bus import protocol as p
from walytis_vault.bus.calls import OpenCall
from walytis_vault.bus.protocol import BusLimits, Kind, Nothing, pack

LIMITS = BusLimits()


@pytest.fixture
def raw(world: World) -> Iterator[Raw]:
    made = Raw(world)
    yield made
    made.close()


def answer(raw: Raw, call: OpenCall) -> tuple[bytes, p.Header]:
    stream = ident()
    raw.socket.send_multipart(pack(Kind.REQUEST, stream, call))
    return stream, p.split(raw.socket.recv_multipart(), body_cap=1 << 20, data_cap=1 << 20)


@pytest.mark.parametrize(("size", "offset"), [(1, 0), (5, 2), (LIMITS.inline, 0), (LIMITS.inline + 7, 7)])
def test_what_is_small_comes_whole_and_ends_the_stream(world: World, raw: Raw, size: int, offset: int) -> None:
    """OPENED brings all that is wanted, and the node keeps nothing of it."""
    data = bytes(i % 251 for i in range(size))
    content = world.client().publish(data).content_id
    stream, message = answer(raw, OpenCall(content_id=content, offset=offset, limit=size, timeout_ms=1000))
    assert message.kind is Kind.OPENED
    assert p.decode(p.OPENED, message.body).length == size
    assert bytes(message.data) == data[offset:]
    assert eventually(lambda: world.server.details()["downloads"] == 0)
    raw.send(Kind.PING, stream, Nothing())
    kind, of, body = raw.receive()
    assert (kind, of, body["code"]) == (Kind.ERROR, stream, p.STREAM_GONE)


@pytest.mark.parametrize(("size", "limit"), [(0, 10), (5, 4), (5, 0), (LIMITS.inline + 1, LIMITS.inline + 1)])
def test_what_is_not_small_or_not_wanted_whole_does_not(world: World, raw: Raw, size: int, limit: int) -> None:
    """No more than the credit allows, and nothing large: those go in chunks."""
    content = world.client().publish(bytes(size)).content_id
    _, message = answer(raw, OpenCall(content_id=content, limit=limit, timeout_ms=1000))
    assert (message.kind, len(message.data)) == (Kind.OPENED, 0)
    assert world.server.details()["downloads"] == 1 or size == 0
