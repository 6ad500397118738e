"""A client that speaks the protocol of the bus and says what it likes, for tests of how the node bears it."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from support.bus_world import World
from walytis_vault.bus import protocol as p
from walytis_vault.bus.protocol import Kind, pack
from walytis_vault.bus.security import load_key


class Raw:
    """A client that says what it likes."""

    def __init__(self, world: World, *, rcvhwm: int = 1000, key_name: str = "local") -> None:
        key = load_key(world.home / "bus" / f"{key_name}.key")
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = rcvhwm
        self.socket.rcvtimeo = 5000
        self.socket.curve_serverkey = world.keys.public.encode()
        self.socket.curve_publickey = key.public_key.encode()
        self.socket.curve_secretkey = key.secret_key.encode()
        self.socket.connect(world.endpoint)

    def send(self, kind: Kind, message_id: bytes, body: Any, data: bytes | None = None) -> None:
        self.socket.send_multipart(pack(kind, message_id, body, data))

    def receive(self) -> tuple[Kind, bytes, dict[str, Any]]:
        parts = self.socket.recv_multipart()
        message = p.split(parts, body_cap=1 << 22, data_cap=1 << 22)
        return message.kind, message.id, msgspec.msgpack.decode(message.body)

    def answer_or_end(self, seconds: float = 5.0, each: Callable[[], None] = lambda: None) -> Kind | None:
        """The kind of what comes next, None when the connection ends first; `each` is called meanwhile.

        Needs `watch` before.
        """
        poller, deadline = zmq.Poller(), time.monotonic() + seconds
        for socket in (self.socket, self._monitor):
            poller.register(socket, zmq.POLLIN)
        while time.monotonic() < deadline:
            each()
            ready = dict(poller.poll(5))
            if self.socket in ready:
                return self.receive()[0]
            if self._monitor in ready:
                return None
        raise TimeoutError("neither an answer nor the end of the connection")

    def watch(self) -> None:
        """Take note from now on when the connection ends."""
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def close(self) -> None:
        self._context.destroy(linger=0)


def rss() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ident() -> bytes:
    """A fresh id."""
    return secrets.token_bytes(16)


def eventually(condition: Any, timeout: float = 5.0) -> bool:
    """Poll a condition that another thread makes true; bounded."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        pause.wait(0.01)
    return False
