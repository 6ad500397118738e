"""What is sent to connections: at once, or queued behind what they have not taken yet, within bounds.

libzmq's own queues count messages and know nothing of their size, so little may wait there, and the rest here. Used by
the door's thread only.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

import zmq

from walytis_vault.bus.meter import Counts
from walytis_vault.bus.peer import Peer
from walytis_vault.bus.protocol import NO_ID, BusLimits, Kind, header

_log = logging.getLogger(__name__)

_PROBE: Final[list[bytes | memoryview]] = [header(Kind.PONG, NO_ID), b"\x80"]


class Cut(Protocol):
    """Ends a connection."""

    def __call__(self, peer: Peer, why: str, *, bar: bool = False) -> None:
        """With `bar` its key may not connect again for a while."""


class Outbox:
    """What waits for all connections.

    Args:
        limits: how much may wait.
        counts: counts what is sent.
        router: the socket of ordinary connections; `bulk` is the other one's, once there is one.
        cut: called for a connection for which too much waits.
        gone: called for a connection that is not there any more; calls `forget`.
    """

    def __init__(
        self, limits: BusLimits, counts: Counts, router: zmq.Socket[bytes], *, cut: Cut, gone: Callable[[Peer], None]
    ) -> None:
        self._limits = limits
        self._counts = counts
        self._router = router
        self.bulk: zmq.Socket[bytes] | None = None
        self._cut = cut
        self._gone = gone
        self.blocked: dict[int, Peer] = {}
        """Connections for which something waits, by the object's id."""
        self._waiting_bytes = 0

    def send(self, peer: Peer, parts: list[bytes | memoryview], *, weighed: bool = True) -> None:
        """Send packed parts, or queue them behind what waits.

        Args:
            weighed: whether the bytes count; those of downloads are bounded by a budget already.
        """
        if peer.gone:
            return
        size = sum(map(len, parts))
        self._counts.messages_out += 1
        self._counts.bytes_out += size
        if peer.waiting or not self._try(peer, parts):
            if peer.gone:
                return
            if not peer.waiting:
                peer.blocked_since = time.monotonic()
                self.blocked[id(peer)] = peer
            self._wait(peer, parts, size if weighed else 0)

    def reaches(self, peer: Peer) -> bool:
        """Whether a connection is still there: sends it a PONG of nothing, and takes no note when it is gone."""
        return self._try(peer, _PROBE, probe=True)

    def flush(self) -> None:
        """Send what is taken now."""
        for router in (self._router, self.bulk):
            if router is not None:
                router.getsockopt(zmq.EVENTS)  # takes note of what was taken, and quiets the descriptor
        for peer in list(self.blocked.values()):
            while peer.waiting and self._try(peer, peer.waiting[0][0]):
                _, size = peer.waiting.popleft()
                peer.waiting_bytes -= size
                self._waiting_bytes -= size
                peer.blocked_since = time.monotonic()
            if not peer.waiting:
                self.blocked.pop(id(peer), None)

    def forget(self, peer: Peer) -> None:
        """Drop what waits for a connection."""
        peer.waiting.clear()
        self._waiting_bytes -= peer.waiting_bytes
        peer.waiting_bytes = 0
        self.blocked.pop(id(peer), None)

    def _wait(self, peer: Peer, parts: list[bytes | memoryview], size: int) -> None:
        limits = self._limits
        peer.waiting.append((parts, size))
        peer.waiting_bytes += size
        self._waiting_bytes += size
        if len(peer.waiting) > limits.peer_waiting or peer.waiting_bytes > limits.peer_waiting_bytes:
            self._cut(peer, "it asks for more than it takes", bar=True)
        elif self._waiting_bytes > limits.total_waiting_bytes:
            self._cut(max(self.blocked.values(), key=lambda p: p.waiting_bytes), "most waits for it to be taken")

    def _try(self, peer: Peer, parts: list[bytes | memoryview], *, probe: bool = False) -> bool:
        router = self.bulk if peer.bulk else self._router
        assert router is not None
        try:
            router.send_multipart([peer.rid, *parts], zmq.NOBLOCK)
        except zmq.ZMQError as e:
            if e.errno == zmq.EAGAIN:
                return probe
            if e.errno != errno.EHOSTUNREACH:
                _log.error("bus: send failed: %s", e)
            if not probe:
                self._gone(peer)
            return False
        return True
