"""The connections of a peer door: how many, of whom, and what they have not read yet.

libzmq accepts whoever connects and keeps what nobody reads. Here every connection belongs to the key that CURVE
authenticated, each key has a few, and replies that wait have a bound: beyond it a peer is told `busy`. The door's
thread alone may call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections import Counter, deque
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from walytis_vault.bus.peer import inode_of
from walytis_vault.domain.errors import BusyError
from walytis_vault.peers import protocol as p

CONNECTIONS: Final = 512
"""Connections of all, those that have not said anything included (a count)."""
CONNECTIONS_OF_ONE: Final = 3
"""Connections of one key (a count): one, and what is left of those before."""
UNREAD_OF_ONE: Final = 8 << 20
"""Bytes of replies that wait for one key to read; libzmq holds up to `HANDED_OVER` more for each connection."""
UNREAD_ALL: Final = 64 << 20
HANDED_OVER: Final = 4
"""Replies of one connection that libzmq holds (a count)."""
WAITING: Final = 64
"""Replies that wait for one connection (a count); more are dropped, and asked for again."""

_log = logging.getLogger(__name__)


class Connection:
    """One that has said something."""

    __slots__ = ("fd", "heard_at", "key", "rid", "waiting")

    def __init__(self, rid: bytes, key: bytes, fd: int) -> None:
        self.rid, self.key, self.fd = rid, key, fd
        self.heard_at = 0.0
        self.waiting: deque[list[bytes]] = deque()


class Connections:
    """Those of one ROUTER, which is not bound yet."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        """Watch the socket from now on."""
        router.sndhwm = HANDED_OVER
        self._router = router
        self.events: zmq.Socket[bytes] = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        """To be polled: `watch` when there is something to read."""
        self._live: dict[int, bytes | None] = {}
        """File descriptor -> routing id, once it has said something. Oldest first."""
        self._by_id: dict[bytes, Connection] = {}
        self._unread: Counter[bytes] = Counter()
        """Key -> bytes that wait."""

    def close(self) -> None:
        """Watch no more; before the socket is closed."""
        self._router.disable_monitor()

    @property
    def blocked(self) -> bool:
        """Whether anything waits to be sent: `flush` soon."""
        return bool(self._unread)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._live)

    def said(self) -> dict[int, float]:
        """When each connection, by its inode, said something last (monotonic seconds)."""
        return {inode_of(c.fd): c.heard_at for c in self._by_id.values()}

    def watch(self) -> None:
        """Note who came and went."""
        while True:
            try:
                event = parse_monitor_message(self.events.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._forget(event["value"])
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._live[event["value"]] = None
                if len(self._live) > CONNECTIONS:
                    self._make_room()

    def heard(self, rid: bytes, key: bytes, fd: int) -> Connection | None:
        """A message came, after everything that `watch` knows; None when its connection is gone already."""
        connection = self._by_id.get(rid)
        if connection is None:
            if fd not in self._live:
                return None
            connection = self._by_id[rid] = Connection(rid, key, fd)
            self._live[fd] = rid
            own = [c for c in self._by_id.values() if c.key == key and c is not connection]
            if len(own) >= CONNECTIONS_OF_ONE:
                self._cut(min(own, key=lambda c: c.heard_at).fd, "its key has too many")
        connection.heard_at = time.monotonic()
        return connection

    def send(self, rid: bytes, frames: list[bytes]) -> None:
        """Send a reply, or keep it until the peer reads; whoever is gone does not need it any more."""
        connection = self._by_id.get(rid)
        if connection is None or (not connection.waiting and self._sent(connection, frames)):
            return
        size = sum(map(len, frames))
        if self._unread[connection.key] + size > UNREAD_OF_ONE or self._unread.total() + size > UNREAD_ALL:
            busy = p.refusal(BusyError("read what was answered before you ask for more"))
            frames = p.pack(p.nonce_of(frames), busy)
        if len(connection.waiting) < WAITING:
            connection.waiting.append(frames)
            self._unread[connection.key] += sum(map(len, frames))

    def flush(self) -> None:
        """Send what can be sent now."""
        for connection in [c for c in self._by_id.values() if c.waiting]:
            while connection.waiting and self._sent(connection, connection.waiting[0]):
                self._taken(connection, connection.waiting.popleft())

    def _sent(self, connection: Connection, frames: list[bytes]) -> bool:
        try:
            self._router.send_multipart([connection.rid, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as e:
            # Anything else than a full queue: it is gone, and `watch` will hear of it.
            return e.errno != errno.EAGAIN
        return True

    def _taken(self, connection: Connection, frames: list[bytes]) -> None:
        self._unread[connection.key] -= sum(map(len, frames))
        if self._unread[connection.key] <= 0:
            del self._unread[connection.key]

    def _make_room(self) -> None:
        """Cut the oldest that has said nothing, or else the one that has been silent for longest."""
        silent = next((fd for fd, rid in self._live.items() if rid is None), None)
        if silent is None:
            silent = min(self._by_id.values(), key=lambda c: c.heard_at).fd
        self._cut(silent, "there are too many")

    def _cut(self, fd: int, why: str) -> None:
        """End a connection: shut its socket down, so that libzmq frees what it holds for it."""
        _log.warning("a connection to the peer door was cut: %s", why)
        self._forget(fd)
        port = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0").rpartition(":")[2])
        # The descriptor is libzmq's own, and may be somebody else's by now: never shut down what is not the door's.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            if connection.getsockname()[1] == port:
                connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, fd: int) -> None:
        connection = self._by_id.pop(self._live.pop(fd, None) or b"", None)
        if connection is not None:
            while connection.waiting:
                self._taken(connection, connection.waiting.popleft())
