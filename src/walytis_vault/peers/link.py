"""A link to another node's peer door: a ZeroMQ DEALER through a tunnel, requests with bounded waits.

The other side is authenticated by its announced CURVE key, or nothing is exchanged at all. One thread owns the
socket; any thread may ask. A dead peer costs only those who wait for it, and only as long as they said.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final

import zmq
from zmq.utils import z85

from walytis_vault.bus.security import BusKeys
from walytis_vault.bus.unfinished import Unfinished
from walytis_vault.bus.wake import Wake
from walytis_vault.domain.errors import TimedOutError, TransportError, UntrustedInputError
from walytis_vault.peers import protocol as p

WAITING: Final = 512
"""Requests that may wait for their replies (a count)."""
Replied = tuple[p.Reply, list[bytes]]


class PeerLink:
    """One link. Connects by itself, again and again, until it is closed."""

    def __init__(self, port: int, *, server_key: bytes, keys: BusKeys) -> None:
        """Connect to a local port that leads to the door.

        Args:
            server_key: the raw CURVE key that the other device announced.
            keys: our own.
        """
        self._context = zmq.Context(io_threads=1)
        dealer = self._dealer = self._context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.sndhwm = 0  # the number of requests in flight is bounded here
        dealer.rcvhwm = 0
        dealer.maxmsgsize = p.PART_LIMIT
        dealer.handshake_ivl = 10_000
        dealer.heartbeat_ivl = 5_000
        dealer.heartbeat_timeout = 20_000
        dealer.reconnect_ivl = 50
        dealer.reconnect_ivl_max = 2_000
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.curve_serverkey = z85.encode(server_key)
        dealer.curve_publickey = keys.public.encode()
        dealer.curve_secretkey = keys.secret.encode()
        dealer.connect(f"tcp://127.0.0.1:{port}")
        self._unfinished = Unfinished()
        self._unfinished.dials(port)
        self._whole_at = 0.0
        """When a whole message came last, whatever it was."""
        self._wake = Wake()
        self._outgoing: deque[list[bytes]] = deque()
        self._open: dict[bytes, tuple[Future[Replied], float]] = {}
        self._lock = threading.Lock()
        self._closing = False
        self.heard_at = time.monotonic()
        """When the other side answered last, whatever it said; before that, when the link was made."""
        self._thread = threading.Thread(target=self._run, name="peer-link", daemon=True)
        self._thread.start()

    def send(self, request: p.Request, payload: Sequence[bytes] = (), *, timeout: float) -> Future[Replied]:
        """Ask without waiting. The future ends within `timeout` seconds, one way or the other."""
        nonce, future = os.urandom(p.NONCE_BYTES), Future[Replied]()
        with self._lock:
            if self._closing or len(self._open) >= WAITING:
                future.set_exception(TransportError("the link to the other node is closed or full"))
                return future
            self._open[nonce] = (future, time.monotonic() + timeout)
        self._outgoing.append(p.pack(nonce, request, payload))
        self._wake.set()
        return future

    def ask(self, request: p.Request, payload: Sequence[bytes] = (), *, timeout: float) -> Replied:
        """Ask and wait.

        Raises:
            TimedOutError, TransportError: no answer. VaultError: the other node refused.
        """
        return settle(self.send(request, payload, timeout=timeout), timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Close; everyone who waits is told. Idempotent."""
        self._closing = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- the link's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._dealer, zmq.POLLIN)
        poller.register(self._wake.fileno(), zmq.POLLIN)
        sweep_at = time.monotonic() + 0.25
        while not self._closing:
            blocked = bool(self._outgoing)
            ready = dict(poller.poll(20 if blocked else 250 if self._open else 1000))
            self._wake.clear()
            self._send_all()
            if self._dealer in ready:
                self._receive_all()
            if time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + 0.25
                self._sweep()
        with self._lock:
            left, self._open = list(self._open.values()), {}
        for future, _ in left:
            future.set_exception(TransportError("the link to the other node was closed"))
        self._dealer.close(0)
        self._wake.close()
        self._context.term()

    def _send_all(self) -> None:
        while self._outgoing:
            frames = self._outgoing[0]
            if frames[0][len(p.MAGIC) :] in self._open:
                try:
                    self._dealer.send_multipart(frames, zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    return  # not connected: it waits until it is, or until its time is over
                except zmq.ZMQError:
                    pass
            self._outgoing.popleft()

    def _receive_all(self) -> None:
        for _ in range(64):
            try:
                frames = [f.bytes for f in self._dealer.recv_multipart(zmq.NOBLOCK, copy=False)]
            except zmq.Again:
                return
            self._whole_at = time.monotonic()
            try:
                nonce = p.nonce_of(frames)
            except UntrustedInputError:
                continue
            with self._lock:
                future, _ = self._open.pop(nonce, (None, 0.0))
            if future is None:
                continue
            self.heard_at = time.monotonic()
            try:
                future.set_result((p.read_reply(frames), frames[2:]))
            except UntrustedInputError as e:
                future.set_exception(e)

    def _sweep(self) -> None:
        now = time.monotonic()
        self._unfinished.look(now, {}, self._whole_at)
        with self._lock:
            late = [nonce for nonce, (_, until) in self._open.items() if until <= now]
            futures = [self._open.pop(nonce)[0] for nonce in late]
        for future in futures:
            future.set_exception(TimedOutError("the other node does not answer"))


def settle(future: Future[Replied], timeout: float) -> Replied:
    """Wait for a reply; a refusal is raised as the error that it tells of."""
    try:
        reply, payload = future.result(timeout + 1.0)
    except FutureTimeoutError as e:
        raise TimedOutError("the other node does not answer") from e
    if isinstance(reply, p.Refused):
        raise p.error_of(reply)
    return reply, payload
