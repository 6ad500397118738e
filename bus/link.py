"""A client's connection to its node: one thread, one socket, and the exchanges that are under way on it.

When the connection is lost it is made again, and every exchange goes on: a request is sent again under its
id, a stream from where it was. Nothing but `VaultError` comes out. Clients for threads and for asyncio stand
on this alone. Spec: docs/bus-protocol.md, "Connections".
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from walytis_vault.bus.endpoint import Address, EndpointRecord
from walytis_vault.bus.protocol import FAILURE, VERSION, BusLimits, Failure, Header, Kind, decode, pack, split
from walytis_vault.bus.security import ClientKey
from walytis_vault.bus.wake import Wake
from walytis_vault.domain.errors import (
    MisuseError,
    NoNodeError,
    PermissionRefusedError,
    ProtocolVersionError,
    TimedOutError,
    TransportError,
    UntrustedInputError,
    VaultError,
)

_log = logging.getLogger(__name__)

_TICK: Final = 0.1
_HANDSHAKE: Final = 3.0
"""Seconds that a node has to prove itself after it accepted the connection."""
_BURST: Final = 64
_RETRY_FIRST: Final = 0.05
_RETRY_MOST: Final = 0.5


class ClosedError(MisuseError):
    """The client was closed. To callers it is a MisuseError."""


class Exchange(Protocol):
    """Something under way with the node. Its methods run on the link's thread."""

    id: bytes
    sent: bool
    """Whether the node may have heard of it."""
    began: float
    """Monotonic seconds."""

    def on_connected(self) -> None:
        """There is a connection, and the node knows nothing of this exchange on it: send (again)."""

    def on_message(self, message: Header) -> None:
        """A message of this exchange. May raise UntrustedInputError."""

    def on_bulk(self, message: Header) -> None:
        """A message of this exchange's id from the bulk socket. May raise UntrustedInputError."""

    def on_tick(self, now: float) -> None:
        """Repeat or give up what takes too long."""

    def fail(self, error: VaultError) -> None:
        """It has ended with an error."""


class Link:
    """The connection of one client.

    Args:
        find: where the node is now; asked at each attempt. May raise VaultError.
        key: the client's key pair; asked for at each attempt.
        grace: seconds for which a request waits for a node that was there before.
        limits: sizes, as the node has them.
    """

    def __init__(
        self,
        find: Callable[[], EndpointRecord],
        key: Callable[[], ClientKey],
        *,
        grace: float = 2.0,
        limits: BusLimits | None = None,
    ) -> None:
        self.limits = limits or BusLimits()
        self._find = find
        self._key = key
        self._grace = grace
        self._pid = os.getpid()
        self._exchanges: dict[bytes, Exchange] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._unsent: deque[list[bytes | memoryview]] = deque()
        self._unsent_bulk: deque[list[bytes | memoryview]] = deque()
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake: Wake | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._bulk: zmq.Socket[bytes] | None = None
        self._addresses: list[Address] = []
        self._poller = zmq.Poller()
        self._connected = False
        self._ever = False
        self._next_tick = 0.0
        self._attempt_at = 0.0
        self._retry_in = _RETRY_FIRST
        self._why: VaultError = NoNodeError("no node was looked for yet")

    def begin(self, exchange: Exchange) -> None:
        """Start an exchange. From any thread.

        Raises:
            MisuseError: the client is closed, or was made before a fork.
        """
        self._check()
        self.post(lambda: self._begin(exchange))

    def post(self, action: Callable[[], None]) -> None:
        """Run something on the link's thread, in order. From any thread; after `close` it is dropped."""
        self._posted.append(action)
        if self._wake is not None:
            self._wake.set()

    def end(self, exchange: Exchange) -> None:
        """Forget an exchange. On the link's thread."""
        self._exchanges.pop(exchange.id, None)

    def send(self, kind: Kind, message_id: bytes, body: Any, data: bytes | memoryview | None = None) -> None:
        """Send on the current connection; without one nothing happens. On the link's thread."""
        self.send_parts(pack(kind, message_id, body, data))

    def send_parts(self, parts: list[bytes | memoryview]) -> None:
        """Send packed parts."""
        if not self._connected:
            return
        if self._unsent or not self._try(parts):
            self._unsent.append(parts)

    def send_bulk(self, kind: Kind, message_id: bytes, body: Any, data: bytes | None = None) -> None:
        """Send on the bulk socket; without one nothing happens. On the link's thread."""
        if self._bulk is not None:
            parts = pack(kind, message_id, body, data)
            if self._unsent_bulk or not _try(self._bulk, parts):
                self._unsent_bulk.append(parts)

    @property
    def has_bulk(self) -> bool:
        """Whether the node has a bulk socket."""
        return self._bulk is not None

    @property
    def connected(self) -> bool:
        """Whether the node has proven itself on the current connection."""
        return self._connected

    def too_late(self, message: str) -> VaultError:
        """The error for an exchange that ran out of time: why there is no node, or `message`."""
        if self._connected:
            return TimedOutError(message)
        return NoNodeError(f"{self._why}; the request may have taken effect: retry it with the same request id")

    def close(self, timeout: float = 2.0) -> None:
        """End all exchanges and the thread, within `timeout` seconds. Idempotent."""
        with self._lock:
            self._closed, was = True, self._closed
            thread = self._thread
        if was or thread is None or self._pid != os.getpid():
            return
        if self._wake is not None:
            self._wake.set()
        if thread is not threading.current_thread():
            thread.join(timeout)

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise MisuseError("this client was made before a fork: make a new one in the child process")
        with self._lock:
            if self._closed:
                raise ClosedError("this client is closed")
            if self._thread is None:
                self._wake = Wake()
                self._poller.register(self._wake.fileno(), zmq.POLLIN)
                self._thread = threading.Thread(target=self._run, name="bus-link", daemon=True)
                self._thread.start()

    def _begin(self, exchange: Exchange) -> None:
        self._exchanges[exchange.id] = exchange
        if self._connected:
            exchange.sent = True
            exchange.on_connected()
        else:
            self._attempt_at = min(self._attempt_at, time.monotonic())

    def _run(self) -> None:
        try:
            self._context = zmq.Context()
            while not self._closed:
                try:
                    self._step()
                except Exception as e:
                    _log.exception("bus: the link met an unexpected error")
                    self._lost(TransportError(f"the connection broke unexpectedly: {e}"))
        finally:
            self._shut()

    def _step(self) -> None:
        now = time.monotonic()
        if not self._connected and self._exchanges:
            self._connect(now)
        wait = 60.0
        if self._exchanges:
            wait = self._next_tick - now
            if not self._connected and self._socket is None:
                wait = min(wait, self._attempt_at - now)
        if self._socket is not None and self._connected:
            self._poller.modify(self._socket, zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))
        if self._bulk is not None:
            self._poller.modify(self._bulk, zmq.POLLIN | (zmq.POLLOUT if self._unsent_bulk else 0))
        ready = dict(self._poller.poll(max(0, int(wait * 1000))))
        if self._wake is not None:
            self._wake.clear()
        for _ in range(len(self._posted)):
            self._posted.popleft()()
        if self._monitor is not None and self._monitor in ready:
            self._watch()
        if self._socket is not None and self._socket in ready:
            if ready[self._socket] & zmq.POLLIN:
                self._receive()
            while self._unsent and self._try(self._unsent[0]):
                self._unsent.popleft()
        if self._bulk is not None and self._bulk in ready:
            if ready[self._bulk] & zmq.POLLIN:
                self._receive(bulk=True)
            while self._bulk is not None and self._unsent_bulk and _try(self._bulk, self._unsent_bulk[0]):
                self._unsent_bulk.popleft()
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + _TICK
            for exchange in list(self._exchanges.values()):
                exchange.on_tick(now)

    def _connect(self, now: float) -> None:
        if self._socket is not None:
            if now - self._attempt_at > _HANDSHAKE:
                self._lost(NoNodeError("whoever has the node's socket cannot prove to be the node"))
            return
        if now < self._attempt_at:
            return
        self._attempt_at = now
        try:
            record = self._find()
            key = self._key()
            address = Address(record.endpoint)
            self._addresses.append(address)
            if not address.answers():
                raise NoNodeError(f"no node answers at {record.endpoint}: start one with `walytis-vault serve`")
            self._open(address, record, key)
        except (NoNodeError, TransportError) as e:
            self._lost(e)
        except VaultError as e:
            self._lost(e)
            self._fail_all(e)
        except (zmq.ZMQError, OSError) as e:
            self._lost(TransportError(f"cannot connect to the node: {e}"))

    def _open(self, address: Address, record: EndpointRecord, key: ClientKey) -> None:
        assert self._context is not None
        s = self._socket = self._context.socket(zmq.DEALER)
        self._configure(s)
        s.maxmsgsize = self.limits.reply + 64
        s.reconnect_ivl = -1
        s.curve_serverkey = record.server_key.encode()
        s.curve_publickey = key.public_key.encode()
        s.curve_secretkey = key.secret_key.encode()
        self._monitor = s.get_monitor_socket()
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(s, zmq.POLLIN)
        s.connect(address.zmq)
        if record.bulk is not None:
            bulk = Address(record.bulk)
            self._addresses.append(bulk)
            self._bulk = self._context.socket(zmq.DEALER)
            self._configure(self._bulk)
            self._bulk.maxmsgsize = self.limits.part
            self._poller.register(self._bulk, zmq.POLLIN)
            self._bulk.connect(bulk.zmq)

    def _configure(self, s: zmq.Socket[bytes]) -> None:
        s.linger = 0
        s.sndhwm = 256
        s.rcvhwm = 256
        s.immediate = True
        s.heartbeat_ivl = 10_000
        s.heartbeat_timeout = 30_000

    def _watch(self) -> None:
        while self._monitor is not None:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            kind = event["event"]
            if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = self._ever = True
                self._retry_in = _RETRY_FIRST
                for exchange in list(self._exchanges.values()):
                    exchange.sent = True
                    exchange.on_connected()
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                error = PermissionRefusedError("the node does not admit this client's key: see `client list`")
                self._lost(error)
                self._fail_all(error)
            elif kind in (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                self._lost(NoNodeError("whoever has the node's socket cannot prove to be the node"))
            elif kind in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED):
                self._receive()  # what came before the end still counts
                self._lost(NoNodeError("the node closed the connection: start it with `walytis-vault serve`"))

    def _lost(self, why: VaultError) -> None:
        """Give the connection up, and fail what was never sent and has waited long enough."""
        now = time.monotonic()
        self._why = why
        self._connected = False
        self._unsent.clear()
        self._unsent_bulk.clear()
        self._drop_socket()
        self._attempt_at = now + self._retry_in
        self._retry_in = min(2 * self._retry_in, _RETRY_MOST)
        for exchange in list(self._exchanges.values()):
            if not exchange.sent and (not self._ever or now - exchange.began > self._grace):
                self.end(exchange)
                exchange.fail(why)

    def _fail_all(self, error: VaultError) -> None:
        for exchange in list(self._exchanges.values()):
            self.end(exchange)
            exchange.fail(error)

    def _drop_socket(self) -> None:
        s, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            self._poller.unregister(monitor)
        if s is not None:
            self._poller.unregister(s)
            with contextlib.suppress(zmq.ZMQError):
                s.disable_monitor()
            s.close(0)
        bulk, self._bulk = self._bulk, None
        if bulk is not None:
            self._poller.unregister(bulk)
            bulk.close(0)
        for address in self._addresses:
            address.close()
        self._addresses.clear()

    def _try(self, parts: list[bytes | memoryview]) -> bool:
        return self._socket is None or _try(self._socket, parts)

    def _receive(self, *, bulk: bool = False) -> None:
        for _ in range(_BURST):
            socket = self._bulk if bulk else self._socket
            if socket is None:
                return
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if bulk:
                self.incoming_bulk([f.buffer for f in frames])
            else:
                self.incoming([f.buffer for f in frames])

    def incoming_bulk(self, parts: list[memoryview]) -> None:
        """Handle one message of the bulk socket, where nothing is to be believed before its seal proves it."""
        with contextlib.suppress(VaultError):
            message = split(parts, body_cap=256, data_cap=self.limits.part)
            exchange = self._exchanges.get(message.id)
            if exchange is not None:
                exchange.on_bulk(message)

    def incoming(self, parts: list[memoryview]) -> None:
        """Handle one message of the node. On the link's thread; tests lose and repeat messages here."""
        try:
            message = split(parts, body_cap=self.limits.reply, data_cap=self.limits.reply)
        except ProtocolVersionError:
            # Header and id are the same in all versions: tell whoever asked.
            self._other_version(bytes(parts[0]))
            return
        except VaultError as e:
            _log.warning("bus: a message of the node was not understood: %s", e)
            return
        exchange = self._exchanges.get(message.id)
        if exchange is None:
            return
        try:
            exchange.on_message(message)
        except UntrustedInputError as e:
            self.end(exchange)
            exchange.fail(TransportError(f"the node answered outside the protocol: {e}"))

    def _other_version(self, head: bytes) -> None:
        exchange = self._exchanges.pop(head[5:], None)
        if exchange is not None:
            message = f"the node speaks version {head[3]} of the bus protocol, this client {VERSION}: update the older"
            exchange.fail(ProtocolVersionError(message))

    def _shut(self) -> None:
        self._drop_socket()
        for action in [self._posted.popleft() for _ in range(len(self._posted))]:
            action()
        self._fail_all(ClosedError("this client was closed"))
        if self._context is not None:
            self._context.destroy(linger=0)
        if self._wake is not None:
            self._wake.close()


def _try(socket: zmq.Socket[bytes], parts: list[bytes | memoryview]) -> bool:
    try:
        socket.send_multipart(parts, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


def reported(message: Header) -> Failure:
    """The body of an ERROR."""
    return decode(FAILURE, message.body)
