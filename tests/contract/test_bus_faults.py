"""Lost and repeated messages, and nodes that go away: every effect once, every stream whole, no gap, no repeat."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.bus_world import World, link_of
from walytis_vault.bus import pace
from walytis_vault.client import Client
from walytis_vault.domain import faults
from walytis_vault.domain.errors import NoNodeError, ProtocolVersionError, TimedOutError, TransportError


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask again after 50 ms, so that lost messages do not make the tests slow."""
    monkeypatch.setattr(pace, "REPEAT", 0.05)
    monkeypatch.setattr(pace, "REPEAT_MOST", 0.2)
    monkeypatch.setattr(pace, "KEEPALIVE", 0.3)


def lossy(client: Client, seed: int, *, drop: float = 0.2, double: float = 0.2) -> Client:
    """Lose and repeat messages that come in."""
    link = link_of(client)
    deliver = link.incoming
    chance = random.Random(seed)

    def incoming(parts: list[memoryview]) -> None:
        roll = chance.random()
        if roll >= drop:
            deliver(parts)
        if roll >= 1 - double:
            deliver(parts)

    link.incoming = incoming  # type: ignore[method-assign]
    return client


@pytest.mark.usefixtures("impatient")
def test_lost_and_doubled_replies_have_one_effect_each(world: World) -> None:
    """1,000 publishes with a fifth of the replies lost and a fifth doubled: 1,000 contents, each once."""
    client = lossy(world.client(), 1)
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda n: client.publish(str(n).encode(), name=str(n)), range(1000)))
    assert len({p.content_id for p in done}) == 1000
    assert world.service.position == 1000
    assert sorted(int(r["name"]) for r in world.service.contents.values()) == list(range(1000))


@pytest.mark.usefixtures("impatient")
def test_streams_through_a_lossy_link(world: World) -> None:
    """Uploads and downloads come out whole when a fifth of the node's messages is lost and a fifth doubled."""
    client = lossy(world.client(), 2)
    for n in range(4):
        data = os.urandom(3_000_000 + n)
        published = client.publish(data)
        assert client.request(published.content_id) == data
    small = client.publish(b"one message").content_id
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: client.request(small), range(100))) == {b"one message"}
    assert world.service.position == 5


@pytest.mark.usefixtures("impatient")
def test_a_subscription_through_a_lossy_link(world: World) -> None:
    """A subscriber sees every change once and in order though messages are lost and doubled."""
    client = lossy(world.client(), 3)
    changes = client.subscribe("events")
    writer = threading.Thread(target=lambda: [world.service.advance(7) for _ in range(300)])
    writer.start()
    assert [next(changes).position for _ in range(2100)] == list(range(1, 2101))
    writer.join()


def test_publishing_while_the_node_restarts(world: World) -> None:
    """8 publishers and 5 restarts: every acknowledged content is there once, and every publish is acknowledged."""
    world.service.latency = 0.002
    client = world.client(timeout=20)
    stop = threading.Event()
    done: list[str] = []

    def publish(number: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            key = secrets.token_bytes(16)
            data = b"x" * (300_000 if n % 10 == 0 else 100)
            while True:
                try:
                    done.append(client.publish(data, name=f"{number}.{n}", request_id=key).content_id)
                    break
                except TransportError:
                    continue

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for n in range(5):
        assert grows(done, 20 * (n + 1))
        world.restart()
    stop.set()
    for thread in threads:
        thread.join(15)
    names = [r["name"] for r in world.service.contents.values()]
    assert len(names) == len(set(names)) == len(set(done)) == len(done)


def grows(items: list[str], size: int) -> bool:
    deadline = time.monotonic() + 10
    pause = threading.Event()
    while len(items) < size:
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


def test_a_subscription_over_restarts(world: World) -> None:
    """A subscriber that sees the node restart goes on where it was."""
    client = world.client()
    changes = client.subscribe("events")
    for round_ in range(3):
        world.service.advance(300)
        got = [next(changes).position for _ in range(300)]
        assert got == list(range(round_ * 300 + 1, round_ * 300 + 301))
        world.stop()
        world.service.advance(0)
        world.start()


def test_a_download_over_a_restart_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    """A download resumes at its offset after a restart, and only the rest is sent again."""
    size = 64 << 20
    content_id = world.service.pretend(size)
    client = world.client(timeout=20)
    restarted = threading.Event()

    def progress(done: int, total: int | None) -> None:
        if done > size // 2 and not restarted.is_set():
            restarted.set()
            world.restart()

    client.request(content_id, to=tmp_path / "target", progress=progress)
    assert restarted.is_set()
    block = world.service.filler
    with (tmp_path / "target").open("rb") as file:
        assert all(file.read(len(block)) == block for _ in range(size // len(block)))
        assert file.read() == b""


def test_an_upload_over_a_restart(world: World) -> None:
    """An upload begins again after a restart, under its request id, and is published once."""
    client = world.client(timeout=20)
    data = os.urandom(20 << 20)
    restarted = threading.Event()

    def progress(done: int, total: int | None) -> None:
        if done > len(data) // 2 and not restarted.is_set():
            restarted.set()
            world.restart()

    published = client.publish(data, progress=progress)
    assert world.service.position == 1
    assert world.service.blobs[published.content_id] == data
    assert not world.service.sessions


def test_an_unseekable_upload_over_a_restart_says_so(world: World) -> None:
    """A source that cannot be read again ends with an error that says that nothing was published."""
    client = world.client(timeout=20)
    read, write = os.pipe()
    restarted = threading.Event()

    def feed() -> None:
        with os.fdopen(write, "wb") as file:
            for _ in range(20):
                try:
                    file.write(b"x" * 1_000_000)
                except BrokenPipeError:
                    return

    def progress(done: int, total: int | None) -> None:
        if done > 5_000_000 and not restarted.is_set():
            restarted.set()
            world.restart()

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(read, "rb") as file, pytest.raises(TransportError):
        client.publish(file, progress=progress)
    thread.join(5)
    assert world.service.position == 0


def test_a_node_that_never_comes_back(world: World) -> None:
    """A client whose node has gone is told so soon, for new requests; requests under way ride out their timeout."""
    client = world.client(timeout=1.0)
    client.status()
    world.service.latency = 30
    world.stop()
    with pytest.raises(NoNodeError):
        client.status()


def test_a_silent_service_times_out(world: World) -> None:
    """A call that the service does not answer in time raises TimedOutError, and the client goes on working."""
    world.service.latency = 1.5
    client = world.client()
    client.status()  # connected, however long that takes on a busy machine
    client._session.timeout = 0.3
    with pytest.raises(TimedOutError):
        client.publish(b"x")
    with pytest.raises(TimedOutError):
        client.publish(b"x" * 300_000)
    client._session.timeout = 10
    assert client.status().position == 0


def test_a_reply_lost_after_the_effect(world: World) -> None:
    """When the node fails between effect and reply, the repeated request returns the first receipt."""
    failed = threading.Event()

    def hook(name: str) -> None:
        if name == "bus.before_reply" and not failed.is_set():
            failed.set()
            raise RuntimeError("killed here")

    client = world.client()
    key = secrets.token_bytes(16)
    faults.install(hook)
    try:
        with pytest.raises(Exception, match="internal error"):
            client.publish(b"x", request_id=key)
    finally:
        faults.install(None)
    assert world.service.position == 1
    assert client.publish(b"x", request_id=key).position == 1


def test_a_client_after_a_fork(world: World) -> None:
    """A client that was made before a fork refuses to be used in the child, with a sentence."""
    client = world.client()
    client.status()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            client.status()
        except Exception as e:
            os.write(write, type(e).__name__.encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        assert file.read() == b"MisuseError"
    os.waitpid(pid, 0)
    assert client.status().position == 0


def test_closing_is_bounded_whatever_is_under_way(world: World) -> None:
    """Server and client close within their bounds while requests, streams and waits are in flight."""
    client = world.client()
    content_id = world.service.pretend(1 << 40)
    world.service.latency = 5
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as e:
            errors.append(e)

    started = threading.Event()
    work: list[Callable[[], object]] = [
        lambda: client.publish(b"x"),
        lambda: client.request(content_id, to=Path("/dev/null"), progress=lambda *_: started.set()),
        lambda: client.wait_for(10**6),
        lambda: client.subscribe("events", after=10**6).next(30),
    ]
    threads = [threading.Thread(target=run, args=(w,)) for w in work]
    for thread in threads:
        thread.start()
    assert started.wait(5)
    world.stop()
    client.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert len(errors) == 4


def test_a_node_of_another_version(world: World) -> None:
    """A client whose node answers in another version says so, instead of waiting."""
    client = world.client()
    link = link_of(client)
    deliver = link.incoming

    def incoming(parts: list[memoryview]) -> None:
        head = bytes(parts[0])
        deliver([memoryview(head[:3] + b"\x02" + head[4:]), *parts[1:]])

    link.incoming = incoming  # type: ignore[method-assign]
    with pytest.raises(ProtocolVersionError, match="version 2"):
        client.status()
