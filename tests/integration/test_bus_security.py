"""Who is kept out of the bus: eavesdroppers, squatters, unknown and revoked keys, other users; on ipc and tcp."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from support.bus_world import World, link_of
from walytis_vault import Node
from walytis_vault.bus.security import add_client, list_clients, make_keys, revoke_client
from walytis_vault.bus.server import BusServer
from walytis_vault.client import Client
from walytis_vault.domain.errors import (
    AlreadyRunningError,
    MisuseError,
    NoNodeError,
    PermissionRefusedError,
    StorageError,
    VaultError,
)


@pytest.fixture(params=["ipc", "tcp"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path, endpoint=None if request.param == "ipc" else "tcp://127.0.0.1:*")
    yield made
    made.close()


@pytest.fixture
def dealer() -> Iterator[zmq.Socket[bytes]]:
    """A bare socket, closed whatever happens."""
    context = zmq.Context()
    made = context.socket(zmq.DEALER)
    made.linger, made.rcvtimeo = 0, 300
    yield made
    context.destroy(linger=0)


class Proxy:
    """Stands between client and node, and records every byte."""

    def __init__(self, folder: Path, target: str, name: str = "proxy.ipc") -> None:
        self.seen = bytearray()
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / name))
        self._listener.listen(8)
        self.endpoint = f"ipc://{folder}/{name}"
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._target.startswith("ipc://"):
                    far = socket.socket(socket.AF_UNIX)
                    far.connect(self._target.removeprefix("ipc://"))
                else:
                    host, port = self._target.removeprefix("tcp://").split(":")
                    far = socket.create_connection((host, int(port)))
                self._sockets += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                self.seen += data
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for s in self._sockets:
            s.close()


def forms(canary: bytes) -> list[bytes]:
    return [canary, canary.hex().encode(), base64.b64encode(canary)[:40], canary[::-1]]


def test_an_eavesdropper_reads_nothing(world: World, tmp_path: Path) -> None:
    """Of content, name, labels and ids that went over the wire, no recorded byte shows anything."""
    canary = secrets.token_bytes(32)
    text = canary.hex()
    proxy = Proxy(tmp_path, world.endpoint)
    with Client(world.home, endpoint=proxy.endpoint) as client:
        for size in (1, 20_000):
            published = client.publish(canary * size, name=text, labels=(text,))
            assert client.request(published.content_id) == canary * size
        assert client.query("catalogue")[0].name == text
        next(client.subscribe("catalogue"))
    proxy.close()
    assert len(proxy.seen) > 1_000_000, "the control: the bytes did pass here"
    for form in [*forms(canary), published.content_id.encode(), bytes.fromhex(published.content_id), b"catalogue"]:
        assert form not in proxy.seen
    # The positive control of the search itself.
    assert canary in bytes(proxy.seen) + canary


def test_an_eavesdropper_on_the_bulk_socket_reads_nothing(tmp_path: Path) -> None:
    """Of large contents that went over the bulk socket, both ways, no recorded byte shows anything."""
    world = World(tmp_path)
    canary = secrets.token_bytes(32)
    proxy = Proxy(tmp_path, f"ipc://{tmp_path}/bus/bulk.ipc")
    client = world.client()
    link = link_of(client)
    find = link._find
    link._find = lambda: msgspec.structs.replace(find(), bulk=proxy.endpoint)
    published = client.publish(canary * 100_000)
    assert client.request(published.content_id) == canary * 100_000
    world.close()
    proxy.close()
    assert len(proxy.seen) > 6_400_000, "the control: the data did pass here"
    for form in [*forms(canary), published.content_id.encode(), bytes.fromhex(published.content_id)]:
        assert form not in proxy.seen


def test_a_real_node_on_tcp(tmp_path: Path) -> None:
    """A node that listens on a loopback port is found by its home; an eavesdropper and a wrong key get nothing."""
    home, canary = tmp_path / "home", secrets.token_bytes(32)
    with Node.create(home, listen="tcp://127.0.0.1:*") as node:
        assert node.endpoint.startswith("tcp://127.0.0.1:")
        proxy = Proxy(tmp_path, node.endpoint)
        with Client(home, endpoint=proxy.endpoint) as client:
            for size in (1, 60_000):
                published = client.publish(canary * size, name=canary.hex())
                assert client.request(published.content_id) == canary * size
            assert client.query("catalogue")[0].name == canary.hex()
        proxy.close()
        assert len(proxy.seen) > 3_800_000, "the control: the bytes did pass here"
        for form in [*forms(canary), published.content_id.encode(), bytes.fromhex(published.content_id)]:
            assert form not in proxy.seen
        add_client(tmp_path / "elsewhere", "local")
        stranger = Client(home, key=tmp_path / "elsewhere" / "local.key", timeout=5)
        with stranger, pytest.raises(PermissionRefusedError):
            stranger.publish(b"x")
        with Client(home) as client:
            assert client.status().position == 4
    for elsewhere in (
        "tcp://0.0.0.0:1",
        "tcp://127.evil.example:1",
        "tcp://127.0.0.1:x",
        "tcp://localhost:1",
        "udp://127.0.0.1:1",
    ):
        with pytest.raises(MisuseError, match="loopback only"):
            Node.open(home, listen=elsewhere)
    with pytest.raises(MisuseError, match="loopback only"):
        Node.create(tmp_path / "other", listen="tcp://0.0.0.0:1")
    assert not (tmp_path / "other").exists()


def test_an_unknown_key_is_refused(world: World, tmp_path: Path) -> None:
    """A key pair that was not admitted gets no answer but that, and the service hears nothing."""
    add_client(tmp_path / "elsewhere", "local")
    with (
        Client(world.home, key=tmp_path / "elsewhere" / "local.key", timeout=3) as client,
        pytest.raises(PermissionRefusedError),
    ):
        client.publish(b"x")
    assert world.service.position == 0


@pytest.mark.parametrize("mechanism", ["null", "plain", "no-server-key"])
def test_connections_without_curve_get_nothing(world: World, dealer: zmq.Socket[bytes], mechanism: str) -> None:
    """A client without CURVE, or with a wrong server key, cannot say anything to the node."""
    if mechanism == "plain":
        dealer.plain_username, dealer.plain_password = b"local", b"x"
    elif mechanism == "no-server-key":
        keys = make_keys()
        dealer.curve_serverkey = make_keys().public.encode()
        dealer.curve_publickey, dealer.curve_secretkey = keys.public.encode(), keys.secret.encode()
    dealer.connect(world.endpoint)
    # A publish and a question: neither is heard, so neither is answered.
    for body in (b"\x82\xa4call\xa7publish\xa6inline\xc3", b"\x81\xa4call\xa6status"):
        with contextlib.suppress(zmq.Again):
            dealer.send_multipart([b"WVB\x01\x01" + secrets.token_bytes(16), body], zmq.NOBLOCK)
    with pytest.raises(zmq.Again):
        dealer.recv()
    assert world.client().status().position == 0
    totals = world.server.details()["totals"]
    assert (totals["messages_in"], totals["requests"]) == (1, 1), "that of the client alone"


def test_a_connection_may_not_name_itself(world: World, dealer: zmq.Socket[bytes]) -> None:
    """An admitted key that chooses a routing id is cut: it could be given replies meant for another."""
    key = world.client()._session._key()
    dealer.routing_id = b"someone"
    dealer.curve_serverkey = world.keys.public.encode()
    dealer.curve_publickey, dealer.curve_secretkey = key.public_key.encode(), key.secret_key.encode()
    dealer.connect(world.endpoint)
    body = b"\x81\xa4call\xa6status"
    dealer.send_multipart([b"WVB\x01\x01" + b"i" * 16, body])
    with contextlib.suppress(zmq.Again):
        while True:
            assert dealer.recv_multipart()[0][4:] == b"\x88" + bytes(16), "at most the probe that precedes the cut"


def test_revoking_cuts_a_live_connection(world: World) -> None:
    """A revoked client's connection ends, with its subscription, and others go on."""
    add_client(world.home / "bus", "app", ["read"])
    client, other = world.client(key="app"), world.client()
    assert client.status().position == 0
    changes = client.subscribe("events")
    revoke_client(world.home / "bus", "app")
    with pytest.raises(VaultError):
        next(changes)
    with pytest.raises(VaultError):
        client.status()
    assert [e.name for e in list_clients(world.home / "bus")] == ["local"]
    assert other.status().position == 0
    assert world.server.details()["connections"] == 1


def test_a_squatter_cannot_pose_as_the_node(tmp_path: Path) -> None:
    """Whoever takes the dead node's socket, silently or with keys of its own, is not believed; nothing is told."""
    world = World(tmp_path)
    record = (tmp_path / "bus" / "endpoint.json").read_bytes()
    world.close()
    (tmp_path / "bus" / "endpoint.json").write_bytes(record)
    (tmp_path / "bus" / "endpoint.json").chmod(0o600)
    context = zmq.Context()
    s = context.socket(zmq.ROUTER)
    s.linger, s.rcvtimeo = 0, 100
    s.curve_server, s.curve_secretkey = True, make_keys().secret.encode()
    s.bind(world.endpoint)
    with Client(tmp_path, timeout=20) as client, pytest.raises(NoNodeError):
        client.publish(b"secret")
    with pytest.raises(zmq.Again):
        s.recv()
    context.destroy(linger=0)
    path = tmp_path / "bus" / "node.ipc"
    path.unlink(missing_ok=True)
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(path))
    silent.listen()
    begun = time.monotonic()
    with Client(tmp_path, timeout=20) as client, pytest.raises(NoNodeError):
        client.publish(b"secret")
    assert time.monotonic() - begun < 15
    silent.close()


def test_a_second_node_does_not_take_over(tmp_path: Path) -> None:
    """A node on a home that is served says so; a dead node's socket is taken; a file in the way is not."""
    world = World(tmp_path)
    second = BusServer(world.service, folder=tmp_path / "bus", keys=make_keys())
    with pytest.raises(AlreadyRunningError):
        second.start()
    assert world.client().status().position == 0
    world.close()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "bus" / "node.ipc"))
    dead.close()
    second.start()
    second.close()
    (tmp_path / "bus" / "node.ipc").write_text("x")
    with pytest.raises(StorageError):
        second.start()


def test_other_addresses_than_loopback_are_refused(tmp_path: Path) -> None:
    """The bus never listens on a network."""
    server = BusServer(World.__new__(World), folder=tmp_path, keys=make_keys(), endpoint="tcp://0.0.0.0:0")  # type: ignore[arg-type]
    with pytest.raises(MisuseError):
        server.start()


def test_a_home_with_a_long_path(tmp_path: Path) -> None:
    """A path that no Unix socket could have works, and nothing lies outside the home."""
    home = tmp_path / ("d" * 100) / ("e" * 100)
    home.mkdir(parents=True)
    world = World(home)
    assert (home / "bus" / "node.ipc").is_socket()
    assert world.client().publish(b"x" * 300_000).position == 1
    world.restart()
    assert world.client().status().position == 1
    world.close()
    assert sorted(p.name for p in (home / "bus").iterdir()) == ["clients", "local.key"]


def test_folder_and_socket_are_private(tmp_path: Path) -> None:
    """Folder 0700, socket and secret 0600, whatever the umask."""
    old = os.umask(0)
    try:
        world = World(tmp_path)
    finally:
        os.umask(old)
    assert (tmp_path / "bus").stat().st_mode & 0o777 == 0o700
    for name in ("node.ipc", "bulk.ipc", "local.key", "endpoint.json", "clients/local.json"):
        assert (tmp_path / "bus" / name).stat().st_mode & 0o177 == 0, name
    world.close()


STRANGER = """
import os, socket, sys
bus = sys.argv[1]
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
def connect():
    s = socket.socket(socket.AF_UNIX); s.connect(bus + "/node.ipc")
def squat():
    socket.socket(socket.AF_UNIX).bind(bus + "/other.ipc")
tries = [
    lambda: os.listdir(bus), lambda: open(bus + "/local.key").read(), lambda: open(bus + "/endpoint.json").read(),
    lambda: os.listdir(bus + "/clients"), lambda: open(bus + "/clients/x.json", "w"), connect, squat,
    lambda: os.unlink(bus + "/node.ipc"), lambda: os.rename(bus, bus + "2"), lambda: os.chmod(bus, 0o777),
]
done = 0
for action in tries:
    try:
        action()
        done += 1
    except OSError:
        pass
print(len(tries), done)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_nowhere() -> None:
    """A process of another user tries ten things with the bus's folder: none succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        world = World(home)
        command = [sys.executable, "-c", STRANGER, str(home / "bus")]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        assert answer.stdout.split() == ["10", "0"]
        world.close()
