"""The peer door: a ZeroMQ ROUTER on 127.0.0.1 behind a libp2p tunnel, for members' devices and the invited.

libzmq asks (ZAP) before it lets a key in, and every message is looked at again with the key that sent it: a
member that is removed while connected gets nothing more. One thread owns the socket, a few workers answer, each key
in its turn. Connections, requests and bytes that nobody reads are bounded for each key and for all.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import zmq
from zmq.utils import z85

from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.unfinished import Unfinished
from walytis_vault.bus.wake import Wake
from walytis_vault.domain.errors import BusyError, TransportError, UntrustedInputError, VaultError
from walytis_vault.peers import protocol as p
from walytis_vault.peers.connections import Connections

ZAP_DOMAIN: Final = b"walytis-vault-peers"
WORKERS: Final = 4
IN_FLIGHT: Final = 32
"""Requests of one key that may wait or be under way (a count)."""
IN_FLIGHT_ALL: Final = 256
BURST: Final = 32
TICK_MS: Final = 250
RETRY_MS: Final = 5
"""Pause before what could not be sent is tried again; libzmq does not tell when one connection takes more."""

_log = logging.getLogger(__name__)

Answer = Callable[[bytes, p.Request, Sequence[bytes]], tuple[p.Reply, Sequence[bytes]]]
"""(CURVE key of the sender, request, payload) -> (reply, payload)."""


class PeerDoor:
    """Serves until closed. Who may come in, and what is answered, is decided by two functions."""

    def __init__(self, secret: bytes, *, admits: Callable[[bytes], bool], answer: Answer) -> None:
        """Bind to a free port of 127.0.0.1.

        Args:
            secret: this device's CURVE secret, 40 characters of Z85.
            admits: whether a raw 32-byte CURVE key may connect; asked for each message again. Quick.
        Raises:
            TransportError: no port.
        """
        self._admits, self._answer = admits, answer
        self._context = zmq.Context(io_threads=1)
        # The ZAP socket must exist before anything is bound: without it libzmq would let anyone in.
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        router = self._router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.rcvhwm = IN_FLIGHT
        router.maxmsgsize = p.PART_LIMIT
        router.router_mandatory = True
        router.router_handover = False
        router.handshake_ivl = 10_000
        router.heartbeat_ivl = 5_000
        router.heartbeat_timeout = 20_000
        router.curve_server = True
        router.curve_secretkey = secret
        router.zap_domain = ZAP_DOMAIN
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._connections = Connections(router)
        try:
            self.port = router.bind_to_random_port("tcp://127.0.0.1")
        except zmq.ZMQError as e:
            raise TransportError(f"the peer door cannot be opened: {e}") from e
        self._unfinished = Unfinished()
        self._unfinished.listens(f"tcp://127.0.0.1:{self.port}")
        self._wake = Wake()
        self._outgoing: deque[tuple[bytes, list[bytes]]] = deque()
        self._in_flight: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._closing = False
        self._workers = FairPool("peer-door", WORKERS)
        self._thread = threading.Thread(target=self._run, name="peer-door", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Stop. Bounded; idempotent."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        self._workers.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    # -- the door's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._connections.events, zmq.POLLIN)
        poller.register(self._wake.fileno(), zmq.POLLIN)
        tick_at = 0.0
        while not self._closing:
            ready = dict(poller.poll(RETRY_MS if self._connections.blocked else TICK_MS))
            try:
                self._wake.clear()
                self._connections.watch()
                self._connections.flush()
                while self._outgoing:
                    self._connections.send(*self._outgoing.popleft())
                if self._zap in ready:
                    self._admit()
                if self._router in ready:
                    self._receive()
                if (now := time.monotonic()) >= tick_at:
                    tick_at = now + TICK_MS / 1000
                    self._unfinished.look(now, self._connections.said())
            except Exception:
                _log.exception("the peer door met an unexpected error and goes on")
        self._connections.close()
        self._router.close(0)
        self._zap.close(0)
        self._wake.close()
        self._context.term()

    def _admit(self) -> None:
        """Answer libzmq's questions who may connect (ZAP, RFC 27)."""
        for _ in range(BURST):
            try:
                parts = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            request_id = parts[1] if len(parts) > 1 else b""
            # A connection that names its own routing id could be given replies meant for another: refused.
            whole = len(parts) == 7 and parts[0] == b"1.0" and not parts[4] and parts[5] == b"CURVE"
            if whole and len(parts[6]) == 32 and self._admits(parts[6]):
                self._zap.send_multipart([b"1.0", request_id, b"200", b"OK", z85.encode(parts[6]), b""])
            else:
                # "Temporary": whoever was just admitted knocks before our log shows it, and must knock again.
                self._zap.send_multipart([b"1.0", request_id, b"300", b"not admitted", b"", b""])

    def _receive(self) -> None:
        came: list[list[zmq.Frame]] = []
        with contextlib.suppress(zmq.Again):
            while len(came) < BURST:
                came.append(self._router.recv_multipart(zmq.NOBLOCK, copy=False))
        self._connections.watch()
        for frames in came:
            try:
                key = z85.decode(str(frames[-1].get("User-Id")).encode())
                connection = self._connections.heard(frames[0].bytes, key, int(frames[-1].get(zmq.SRCFD)))
            except (zmq.ZMQError, ValueError):
                continue
            if connection is None:
                continue
            parts = [f.bytes for f in frames[1:]]
            try:
                nonce = p.nonce_of(parts)
            except UntrustedInputError as e:
                _log.warning("a peer sent nonsense: %s", e)
                continue
            with self._lock:
                full = self._in_flight[key] >= IN_FLIGHT or self._in_flight.total() >= IN_FLIGHT_ALL
                if not full:
                    self._in_flight[key] += 1
            if full:
                self._connections.send(connection.rid, p.pack(nonce, p.refusal(BusyError("too many requests at once"))))
                continue
            self._workers.submit(key, partial(self._work, connection.rid, key, nonce, parts))

    # -- a worker -----------------------------------------------------------------------------------------------

    def _work(self, routing_id: bytes, key: bytes, nonce: bytes, parts: list[bytes]) -> None:
        payload: Sequence[bytes] = ()
        reply: p.Reply
        try:
            reply, payload = self._answer(key, p.read_request(parts), parts[2:])
        except VaultError as e:
            reply = p.refusal(e)
        except Exception:
            _log.exception("a peer's request failed unexpectedly")
            reply = p.refusal(TransportError("the other node failed to answer"))
        finally:
            with self._lock:
                self._in_flight[key] -= 1
                if self._in_flight[key] <= 0:
                    del self._in_flight[key]
        self._outgoing.append((routing_id, p.pack(nonce, reply, payload)))
        self._wake.set()
