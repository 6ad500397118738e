"""Which connections of a listening socket are there: libzmq tells of each that comes and goes, by its descriptor.

It tells that one has ended before it closes the descriptor, so an event about another connection with the same number
comes later. Used by the thread that owns the socket.
"""

from __future__ import annotations

from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

_EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


class Live:
    """The connections of one socket, which is not bound yet."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router
        self.events: zmq.Socket[bytes] = router.get_monitor_socket(_EVENTS)
        """To be polled: `watch` when there is something to read."""
        self._descriptors: set[int] = set()

    def watch(self) -> list[int]:
        """Note who came and went; returns the descriptors of those that have ended."""
        ended: list[int] = []
        while True:
            try:
                event = parse_monitor_message(self.events.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return ended
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._descriptors.add(event["value"])
            else:
                self._descriptors.discard(event["value"])
                ended.append(event["value"])

    def __contains__(self, descriptor: int) -> bool:
        """Whether that connection is there, as far as `watch` knows."""
        return descriptor in self._descriptors

    def close(self) -> None:
        """Watch no more; before the socket is closed."""
        self._router.disable_monitor()
