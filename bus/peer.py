"""One connection as the door knows it, and whom the door tells of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

import zmq

from walytis_vault.bus.protocol import Header
from walytis_vault.bus.security import ClientEntry


class Peer:
    """One connection. Touched by the door's thread only."""

    __slots__ = (
        "blocked_since",
        "bulk",
        "entry",
        "fd",
        "gone",
        "heard",
        "inflight",
        "inode",
        "refusals",
        "refused_since",
        "requests",
        "rid",
        "said",
        "strikes",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, rid: bytes, entry: ClientEntry, fd: int, now: float, *, bulk: bool = False) -> None:
        self.rid = rid
        self.bulk = bulk
        self.entry = entry
        self.fd = fd
        self.inode = inode_of(fd)
        self.heard = now
        """When it was last known to be there."""
        self.said = now
        """When it last said something whole."""
        self.waiting: deque[tuple[list[bytes | memoryview], int]] = deque()
        """Messages, and how many bytes of them count."""
        self.waiting_bytes = 0
        self.blocked_since = 0.0
        self.inflight: dict[str, int] = {}
        self.requests = 0
        self.strikes = 0
        self.refusals = 0
        self.refused_since = now
        self.gone = False

    def shut_down(self) -> None:
        """End the connection under libzmq's hands."""
        shut_down(self.fd, self.inode)


def shut_down(fd: int, inode: int) -> None:
    """End a connection under libzmq's hands. Nothing happens if the descriptor is another's by now."""
    with contextlib.suppress(OSError):
        mine = os.dup(fd)
        try:
            if os.fstat(mine).st_ino == inode:
                with socket.socket(fileno=mine) as connection:
                    mine = -1
                    connection.shutdown(socket.SHUT_RDWR)
        finally:
            if mine >= 0:
                os.close(mine)


class Listener(Protocol):
    """What the door tells the server, always on the door's thread."""

    def on_message(self, peer: Peer, message: Header) -> None:
        """A well-formed message of an admitted client. May raise VaultError, which becomes the reply."""

    def on_bulk(self, message: Header, connect: Callable[[ClientEntry], Peer]) -> None:
        """A message from the bulk socket: of nobody, until its stream's key says otherwise. May raise VaultError."""

    def on_gone(self, peer: Peer) -> None:
        """The connection is no more."""

    def on_tick(self, now: float) -> None:
        """Some time has passed (monotonic seconds)."""


def source_of(frame: zmq.Frame) -> int:
    """The descriptor that a message came over; -1 when libzmq does not say."""
    with contextlib.suppress(zmq.ZMQError):
        return int(frame.get(zmq.SRCFD))
    return -1


def inode_of(fd: int) -> int:
    """The inode behind a descriptor; -1 when there is none."""
    with contextlib.suppress(OSError):
        return os.fstat(fd).st_ino
    return -1
