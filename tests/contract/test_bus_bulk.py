"""The bulk socket: data of large streams goes over it, sealed; and everything still works when it does not."""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import msgspec
import pytest
import zmq

from support.bus_world import World, link_of
from walytis_vault.bus import pace
from walytis_vault.bus.protocol import Attach, Kind, Place, pack
from walytis_vault.bus.sealing import Seal, new_key
from walytis_vault.client import Client
from walytis_vault.domain.errors import TransportError, UntrustedInputError

SIZE = 5_000_001


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask again and fall back soon."""
    monkeypatch.setattr(pace, "REPEAT", 0.05)
    monkeypatch.setattr(pace, "FALL_BACK", 0.3)


def without_bulk(client: Client) -> Client:
    """A client that does not know of the bulk socket."""
    link = link_of(client)
    find = link._find
    link._find = lambda: msgspec.structs.replace(find(), bulk=None)
    return client


def count_bulk(client: Client) -> list[int]:
    """Sizes of what comes over the bulk socket, as it comes."""
    link = link_of(client)
    deliver = link.incoming_bulk
    seen: list[int] = []

    def incoming(parts: list[memoryview]) -> None:
        seen.append(len(parts[-1]))
        deliver(parts)

    link.incoming_bulk = incoming  # type: ignore[method-assign]
    return seen


def test_large_streams_use_it_and_small_ones_do_not(world: World) -> None:
    """Data of a large download comes over the bulk socket, that of a small one does not."""
    client = world.client()
    seen = count_bulk(client)
    small, large = os.urandom(500_000), os.urandom(SIZE)
    assert client.request(client.publish(small).content_id) == small
    assert seen == []
    assert client.request(client.publish(large).content_id) == large
    assert sum(seen) == SIZE + 16 * len(seen)


def test_chunks_fit_into_the_first_credit(world: World) -> None:
    """A client that gives little credit gets smaller chunks, and everything."""
    client = world.client()
    link, seen = link_of(client), count_bulk(client)
    link.limits = msgspec.structs.replace(link.limits, window=300_000)
    data = os.urandom(SIZE)
    assert client.request(client.publish(data).content_id) == data
    assert max(seen) == 300_000 + 16


def test_with_and_without(world: World) -> None:
    """Clients that know the bulk socket and clients that do not exchange the same contents."""
    knows, not_ = world.client(), without_bulk(world.client())
    for writer, reader in ((knows, not_), (not_, knows), (not_, not_)):
        data = os.urandom(SIZE)
        assert reader.request(writer.publish(data).content_id) == data


@pytest.mark.usefixtures("impatient")
def test_a_bulk_socket_that_carries_nothing(world: World) -> None:
    """When nothing gets through on it, transfers go the ordinary way."""
    client = world.client()
    link = link_of(client)
    link.incoming_bulk = lambda parts: None  # type: ignore[method-assign]
    content_id = world.service.pretend(SIZE)
    assert len(client.request(content_id) or b"") == SIZE
    link.send_bulk = lambda *_: None  # type: ignore[method-assign]
    for size in (SIZE, 2_000_000):
        data = os.urandom(size)
        published = client.publish(data)
        assert world.service.blobs[published.content_id] == data
    assert not world.service.sessions


@pytest.mark.usefixtures("impatient")
def test_lost_and_doubled_chunks(world: World) -> None:
    """A download whose bulk messages are lost and doubled is whole."""
    client = world.client()
    link = link_of(client)
    deliver = link.incoming_bulk
    chance = random.Random(4)

    def incoming(parts: list[memoryview]) -> None:
        roll = chance.random()
        if roll > 0.25:
            deliver(parts)
        if roll > 0.8:
            deliver(parts)

    link.incoming_bulk = incoming  # type: ignore[method-assign]
    data = os.urandom(SIZE)
    assert client.request(client.publish(data).content_id) == data


def test_changed_data_is_not_believed(world: World, tmp_path: Path) -> None:
    """A flipped bit on the bulk socket ends the transfer with an error; nothing appears, nothing is published."""
    client = world.client()
    link = link_of(client)
    deliver, send = link.incoming_bulk, link.send_bulk

    def flip(parts: list[memoryview]) -> None:
        data = bytearray(parts[-1])
        data[len(data) // 2] ^= 1
        deliver([*parts[:-1], memoryview(data)])

    link.incoming_bulk = flip  # type: ignore[method-assign]
    content_id = world.service.pretend(SIZE)
    with pytest.raises(TransportError):
        client.request(content_id, to=tmp_path / "target")
    assert not (tmp_path / "target").exists()

    def flip_out(kind: Kind, message_id: bytes, body: object, data: bytes | None = None) -> None:
        send(kind, message_id, body, data and bytes([data[0] ^ 1]) + data[1:])

    link.send_bulk = flip_out  # type: ignore[method-assign]
    position = world.service.position
    with pytest.raises(UntrustedInputError):
        client.publish(os.urandom(SIZE))
    assert world.service.position == position


def test_strangers_on_the_bulk_socket_get_nothing(world: World) -> None:
    """Whoever connects to it without a stream's key gets no byte, and disturbs nobody."""
    context = zmq.Context()
    s = context.socket(zmq.DEALER)
    s.linger, s.rcvtimeo = 0, 300
    s.connect(f"ipc://{world.home}/bus/bulk.ipc")
    client = world.client()
    stream = secrets.token_bytes(16)
    proof = Seal(new_key(), stream).proof()
    tried = False

    def progress(done: int, total: int | None) -> None:
        nonlocal tried
        if tried:
            return
        tried = True
        current = next(iter(link_of(client)._exchanges))
        for message_id in (stream, current):
            s.send_multipart(pack(Kind.ATTACH, message_id, Attach(proof=proof)))
            s.send_multipart(pack(Kind.ATTACH, message_id, Attach(proof=b"")))
            s.send_multipart(pack(Kind.DATA, message_id, Place(offset=0), b"x" * 1000))
            s.send_multipart(pack(Kind.CHUNK, message_id, Place(offset=0), b"x" * 1000))
            s.send_multipart([b"junk"] * 4)
            s.send_multipart([b""] * 9)

    content_id = world.service.pretend(20 * SIZE)
    assert client.request(content_id, to=Path("/dev/null"), progress=progress) is None
    assert tried
    with pytest.raises(zmq.Again):
        s.recv()
    context.destroy(linger=0)


def test_a_restart_in_the_middle(world: World, tmp_path: Path) -> None:
    """A bulk download and a bulk upload survive a restart of the node."""
    client = world.client(timeout=20)
    data = os.urandom(12 * SIZE)
    restarts = 0

    def restart_once(done: int, total: int | None) -> None:
        nonlocal restarts
        if done > len(data) // 2 and restarts in (0, 2):
            restarts += 1
            world.restart()

    published = client.publish(data, progress=restart_once)
    restarts = 2
    client.request(published.content_id, to=tmp_path / "target", progress=restart_once)
    assert restarts == 3
    assert (tmp_path / "target").read_bytes() == data
