"""Makes the node's ROUTER sockets: what libzmq bounds before a message reaches us.

Of the sizes of messages libzmq knows only the largest, so few may wait in it.
"""

from __future__ import annotations

from typing import Any

import zmq


def make_router(context: zmq.Context[Any], *, part: int, queued: int) -> zmq.Socket[bytes]:
    """A ROUTER, not yet bound.

    Args:
        part: bytes of the largest part that it takes; a connection that sends a larger one is ended.
        queued: messages that libzmq may hold for one connection that takes none (a count).
    """
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    router.linger = 0
    router.sndhwm = queued
    router.rcvhwm = 64
    router.maxmsgsize = part
    router.router_mandatory = True
    router.router_handover = False
    router.backlog = 512
    router.handshake_ivl = 5000
    router.heartbeat_ivl = 10_000
    router.heartbeat_timeout = 30_000
    return router
