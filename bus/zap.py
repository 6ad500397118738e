"""Answers libzmq's question who may connect (ZAP, RFC 27): public keys that are admitted, and nobody else.

Polled by the door's thread. It must exist before anything is bound: without it libzmq would let anyone in.
"""

from __future__ import annotations

import time
from typing import Final

import zmq
from zmq.utils import z85

from walytis_vault.bus.barred import Barred
from walytis_vault.bus.clients import ClientTable
from walytis_vault.bus.gate import Gate
from walytis_vault.bus.protocol import NOT_YET

ZAP_DOMAIN: Final = b"walytis-vault"
_ENDPOINT: Final = "inproc://zeromq.zap.01"
_BURST: Final = 64


class Zap:
    """The authenticator of one context."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], clients: ClientTable, barred: Barred) -> None:
        self._clients = clients
        self._barred = barred
        self.gate = Gate(None, 1.0, 0.0)
        """Told of everybody who comes."""
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(_ENDPOINT)

    def answer(self) -> None:
        """Answer what was asked."""
        for _ in range(_BURST):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            request_id = parts[1] if len(parts) > 1 else b""
            entry = None
            if len(parts) == 7 and parts[0] == b"1.0" and parts[5] == b"CURVE" and len(parts[6]) == 32:
                self._clients.refresh()
                entry = self._clients.by_key(z85.encode(parts[6]).decode())
            now = time.monotonic()
            barred = entry is not None and not self._barred.may_come(entry.public_key, now)
            self.gate.came(now, refused=entry is None or barred)
            if entry is None:
                self.socket.send_multipart([b"1.0", request_id, b"400", b"not admitted", b"", b""])
            elif barred:
                self.socket.send_multipart([b"1.0", request_id, b"%d" % NOT_YET, b"not yet", b"", b""])
            else:
                self.socket.send_multipart([b"1.0", request_id, b"200", b"OK", entry.public_key.encode(), b""])
