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
from typing import Any, Final

import zmq

from walytis_vault.bus import turns
from walytis_vault.bus.endpoint import EndpointRecord
from walytis_vault.bus.exchange import ClosedError, Exchange
from walytis_vault.bus.gate import OPEN_S
from walytis_vault.bus.heap import steady_heap
from walytis_vault.bus.protocol import NOT_YET, VERSION, BusLimits, Kind, pack, split
from walytis_vault.bus.sealing import TAG_BYTES
from walytis_vault.bus.security import ClientKey
from walytis_vault.bus.wake import Wake
from walytis_vault.bus.wire import ShutError, Wire
from walytis_vault.domain.errors import (
    BusyError,
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
_RETRY_FIRST: Final = 0.05
_RETRY_MOST: Final = 0.5


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
        share = self.limits.client_streams // 4  # the key's other programs have some as well
        self._turns = turns.Turns({"call": self.limits.peer_requests, "download": share, "upload": share})
        self.moved = time.monotonic()
        """When something else than the answer to a ping came last (monotonic seconds)."""
        self._posted: deque[Callable[[], None]] = deque()
        self._closed = False
        self._drained = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake: Wake | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._wire: Wire | None = None
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
        with self._lock:
            self._check()
            self._posted.append(lambda: self._begin(exchange))
        self._poke()

    def post(self, action: Callable[[], None]) -> None:
        """Run something on the link's thread, in order. From any thread; after `close` it is dropped."""
        with self._lock:
            if not self._drained:
                self._posted.append(action)
        self._poke()

    def end(self, exchange: Exchange) -> None:
        """Forget an exchange, and let the next in line have its turn. On the link's thread."""
        if self._exchanges.get(exchange.id) is exchange:
            del self._exchanges[exchange.id]
            after = self._turns.leave(exchange)
            if after is not None:
                self._start(self._exchanges[after.id])

    def rename(self, exchange: Exchange, new_id: bytes) -> None:
        """Begin an exchange again under another id; it keeps its turn. On the link's thread."""
        if self._exchanges.get(exchange.id) is exchange:
            del self._exchanges[exchange.id]
            self._turns.rename(exchange, new_id)
        exchange.id = new_id
        self._begin(exchange)

    def in_line(self, exchange: Exchange) -> bool:
        """Whether the node is not to hear of it yet, since others have their turn. On the link's thread."""
        return self._turns.in_line(exchange)

    def send(self, kind: Kind, message_id: bytes, body: Any, data: bytes | memoryview | None = None) -> None:
        """Send on the current connection; without one nothing happens. On the link's thread."""
        self.send_parts(pack(kind, message_id, body, data))

    def send_parts(self, parts: list[bytes | memoryview]) -> None:
        """Send packed parts."""
        if self._connected and self._wire is not None:
            self._wire.main.send(parts)

    def send_bulk(self, kind: Kind, message_id: bytes, body: Any, data: bytes | None = None) -> None:
        """Send on the bulk socket; without one nothing happens. On the link's thread."""
        if self._wire is not None and self._wire.bulk is not None:
            self._wire.bulk.send(pack(kind, message_id, body, data))

    @property
    def has_bulk(self) -> bool:
        """Whether the node has a bulk socket."""
        return self._wire is not None and self._wire.bulk is not None

    @property
    def connected(self) -> bool:
        """Whether the node has proven itself on the current connection."""
        return self._connected

    def too_late(self, message: str) -> VaultError:
        """The error for an exchange that ran out of time: why there is no node, or `message`."""
        if self._connected:
            return TimedOutError(message)
        kind = BusyError if isinstance(self._why, BusyError) else NoNodeError
        return kind(f"{self._why}; the request may have taken effect: retry it with the same request id")

    def close(self, timeout: float = 2.0) -> None:
        """End all exchanges and the thread, within `timeout` seconds. Idempotent."""
        with self._lock:
            self._closed, was = True, self._closed
            thread = self._thread
        if was or thread is None or self._pid != os.getpid():
            return
        self._poke()
        if thread is not threading.current_thread():
            thread.join(timeout)

    def _poke(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _check(self) -> None:
        """With the lock."""
        if self._pid != os.getpid():
            raise MisuseError("this client was made before a fork: make a new one in the child process")
        if self._closed:
            raise ClosedError("this client is closed")
        if self._thread is None:
            self._wake = Wake()
            self._poller.register(self._wake.fileno(), zmq.POLLIN)
            self._thread = threading.Thread(target=self._run, name="bus-link", daemon=True)
            self._thread.start()

    def _begin(self, exchange: Exchange) -> None:
        if exchange.id in self._exchanges:
            exchange.fail(MisuseError("this request id is under way already: wait for its reply"))
            return
        self._exchanges[exchange.id] = exchange
        self._start(exchange)

    def _start(self, exchange: Exchange) -> None:
        """Tell the node of it, if there is one and it is its turn."""
        if not self._connected:
            self._attempt_at = min(self._attempt_at, time.monotonic())
        elif self._turns.may(exchange):
            exchange.sent = True
            self._let(exchange, exchange.on_connected)

    def _let(self, exchange: Exchange, act: Callable[[], None]) -> None:
        """Whatever is wrong with one exchange is no other's trouble."""
        try:
            act()
        except UntrustedInputError as e:
            self.end(exchange)
            exchange.fail(TransportError(f"the node answered outside the protocol: {e}"))
        except Exception as e:
            _log.exception("bus: a request met an unexpected error")
            self.end(exchange)
            exchange.fail(TransportError(f"the request met an unexpected error: {type(e).__name__}"))

    def _run(self) -> None:
        try:
            steady_heap()
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
            if self._wire is None:
                wait = min(wait, self._attempt_at - now)
        ready = dict(self._poller.poll(max(0, int(wait * 1000))))
        if self._wake is not None:
            self._wake.clear()
        for _ in range(len(self._posted)):
            self._posted.popleft()()
        wire = self._wire
        if wire is not None:
            if wire.monitor in ready:
                self._watch(wire)
            if wire.main.socket in ready:
                self._receive(wire)
                wire.main.flush()
            if wire.bulk is not None and wire.bulk.socket in ready:
                for parts in wire.bulk.receive():
                    self.incoming_bulk(parts)
                wire.bulk.flush()
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + _TICK
            for exchange in list(self._exchanges.values()):
                self._let(exchange, lambda e=exchange: e.on_tick(now))  # type: ignore[misc]

    def _connect(self, now: float) -> None:
        if self._wire is not None:
            if now - self._attempt_at > _HANDSHAKE:
                self._lost(NoNodeError("whoever has the node's socket cannot prove to be the node"))
            return
        if now < self._attempt_at:
            return
        self._attempt_at = now
        try:
            assert self._context is not None
            record, key = self._find(), self._key()
            self._wire = Wire(self._context, self._poller, record, key, self.limits)
        except (NoNodeError, TransportError, BusyError) as e:
            self._lost(e)
        except VaultError as e:
            self._lost(e)
            self._fail_all(e)
        except (zmq.ZMQError, OSError) as e:
            self._lost(TransportError(f"cannot connect to the node: {e}"))

    def _watch(self, wire: Wire) -> None:
        for event, value in wire.events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = self._ever = True
                self._retry_in = _RETRY_FIRST
                for exchange in list(self._exchanges.values()):
                    self._start(exchange)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == NOT_YET:
                self._lost(BusyError("a program with this key sends too much, so it waits: `client add` makes others"))
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                error = PermissionRefusedError("the node does not admit this client's key: see `client list`")
                self._lost(error)
                self._fail_all(error)
            elif event in (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                self._lost(NoNodeError("whoever has the node's socket cannot prove to be the node"))
            elif event in (zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED) and not self._connected and wire.missed():
                self._lost(ShutError())
            elif event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED):
                self._receive(wire)  # what came before the end still counts
                self._lost(NoNodeError("the node closed the connection: start it with `walytis-vault serve`"))

    def _receive(self, wire: Wire) -> None:
        for parts in wire.main.receive():
            self.incoming(parts)

    def _lost(self, why: VaultError) -> None:
        """Give the connection up, and fail what was never sent and has waited long enough."""
        now = time.monotonic()
        self._why = why
        self._connected = False
        self._drop_wire()
        if isinstance(why, ShutError):
            self._attempt_at = now + OPEN_S / 2
        else:
            self._attempt_at = now + self._retry_in
            self._retry_in = min(2 * self._retry_in, _RETRY_MOST)
        for exchange in list(self._exchanges.values()):
            patience = self._grace if self._ever or isinstance(why, BusyError) else 0.0
            if not exchange.sent and now - exchange.began >= patience and not isinstance(why, ShutError):
                self.end(exchange)
                exchange.fail(why)

    def _fail_all(self, error: VaultError) -> None:
        for exchange in list(self._exchanges.values()):
            self.end(exchange)
            exchange.fail(error)

    def _drop_wire(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def incoming_bulk(self, parts: list[memoryview]) -> None:
        """Handle one message of the bulk socket, where nothing is to be believed before its seal proves it."""
        with contextlib.suppress(VaultError):
            message = split(parts, body_cap=256, data_cap=self.limits.bulk_chunk + TAG_BYTES)
            self.moved = time.monotonic()
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
        if message.kind is not Kind.PONG:
            self.moved = time.monotonic()
        exchange = self._exchanges.get(message.id)
        if exchange is not None:
            self._let(exchange, lambda: exchange.on_message(message))

    def _other_version(self, head: bytes) -> None:
        exchange = self._exchanges.get(head[5:])
        if exchange is not None:
            self.end(exchange)
            message = f"the node speaks version {head[3]} of the bus protocol, this client {VERSION}: update the older"
            exchange.fail(ProtocolVersionError(message))

    def _shut(self) -> None:
        self._connected = False
        self._drop_wire()
        with self._lock:
            self._closed = self._drained = True
            left, self._posted = self._posted, deque()
        for action in left:
            with contextlib.suppress(Exception):  # what began is failed next, whatever else was to be done
                action()
        self._fail_all(ClosedError("this client was closed"))
        if self._context is not None:
            self._context.destroy(linger=0)
        if self._wake is not None:
            self._wake.close()
