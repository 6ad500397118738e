"""Subscriptions and waits: pushed when views advance, never polled.

A subscriber holds a position and credit; a worker reads the changes after the position as far as credit
goes. Who grants nothing gets nothing and costs nothing. Subscribers at the same place share one read.
State is touched by the door's thread only. Spec: docs/bus-protocol.md, "Subscriptions".
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from walytis_vault.bus.calls import SubscribeCall, WaitForCall
from walytis_vault.bus.door import Door
from walytis_vault.bus.errors import shield
from walytis_vault.bus.peer import Peer
from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.protocol import CREDIT, GONE, Header, Kind, Length, Pong, Span, decode, encode
from walytis_vault.bus.service import VaultService
from walytis_vault.domain.errors import MisuseError, TimedOutError, VaultError

_CACHED = 32


class Subscription:
    """One subscriber to one view."""

    def __init__(self, peer: Peer, stream_id: bytes, call: SubscribeCall) -> None:
        self.peer = peer
        self.id = stream_id
        self.call = call
        self.filters = encode(call.filters)
        self.position = call.after
        self.sent = 0
        self.received = 0
        self.limit = call.limit
        self.busy = False
        self.dirty = True
        self.dead = False
        self.touched = time.monotonic()


class _Waiter:
    def __init__(self, peer: Peer, request_id: bytes, call: WaitForCall) -> None:
        self.peer = peer
        self.id = request_id
        self.position = call.position
        self.deadline = time.monotonic() + call.timeout_ms / 1000


class Feed:
    """All subscriptions and waits of a node."""

    def __init__(self, door: Door, service: VaultService, pool: FairPool) -> None:
        self._door = door
        self._service = service
        self._pool = pool
        self._subscriptions: dict[tuple[bytes, bytes], Subscription] = {}
        self._waiters: dict[tuple[bytes, bytes], _Waiter] = {}
        self._dying: set[Subscription] = set()
        """Those that have ended, and that a worker has not let go of."""
        self._position = 0
        self._posted = False
        self._cache: OrderedDict[tuple[str, bytes, int, int | None, int, int], tuple[bytes, int, int]] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._generation = 0
        """How often the cache was cleared: what was read before is not kept after."""
        self._stop = service.on_advance(self._advanced)

    @property
    def open_count(self) -> int:
        """How many are open, of all clients."""
        return len(self._subscriptions)

    def count(self, name: str) -> int:
        """Subscriptions and waits that a client key has open."""
        peers = [s.peer for s in [*self._subscriptions.values(), *self._dying]] + [
            w.peer for w in self._waiters.values()
        ]
        return sum(1 for peer in peers if peer.entry.name == name)

    def _advanced(self, position: int) -> None:
        """On the service's thread, for each event: remember, and tell the door once."""
        self._position = max(self._position, position)
        if not self._posted:
            self._posted = True
            self._door.post(self._deliver)

    def _deliver(self) -> None:
        self._posted = False
        position = self._position
        with self._cache_lock:
            self._cache.clear()  # rows may hold names that have just been forgotten, or sealed by a lock
            self._generation += 1
        for key, waiter in list(self._waiters.items()):
            if waiter.position <= position:
                self._answer(key, position)
        for subscription in list(self._subscriptions.values()):
            subscription.dirty = True
            self._pump(subscription)

    def wait_for(self, peer: Peer, request_id: bytes, call: WaitForCall) -> None:
        """Answer when views include the position."""
        key = (peer.rid, request_id)
        if key in self._waiters:
            return
        self._waiters[key] = _Waiter(peer, request_id, call)
        self._pool.submit(peer.entry.public_key, lambda: self._look(key, call.position))

    def _look(self, key: tuple[bytes, bytes], position: int) -> None:
        if key not in self._waiters:
            return  # its connection is gone
        with shield(lambda e: self._door.post(lambda: self._answer(key, e))):
            try:
                now = self._service.wait_for(position, timeout=0)
            except TimedOutError:
                return  # not yet: the next advance answers, or the deadline
            self._door.post(lambda: self._answer(key, now))

    def _answer(self, key: tuple[bytes, bytes], result: int | VaultError) -> None:
        waiter = self._waiters.pop(key, None)
        if waiter is None:
            return
        if isinstance(result, VaultError):
            self._door.send_error(waiter.peer, waiter.id, result)
        else:
            self._door.send(waiter.peer, Kind.REPLY, waiter.id, result)

    def subscribe(self, peer: Peer, stream_id: bytes, call: SubscribeCall) -> None:
        """Begin to follow a view."""
        key = (peer.rid, stream_id)
        if key in self._subscriptions:
            return
        subscription = self._subscriptions[key] = Subscription(peer, stream_id, call)
        self._pump(subscription)

    def on_message(self, peer: Peer, message: Header) -> bool:
        """Handle a message if it belongs to a subscription; False if there is none of that id."""
        subscription = self._subscriptions.get((peer.rid, message.id))
        if subscription is None:
            return False
        subscription.touched = time.monotonic()
        if message.kind is Kind.CREDIT:
            credit = decode(CREDIT, message.body)
            if credit.received > subscription.sent:
                self._fail(subscription, MisuseError("credit for changes that were never sent"))
                return True
            subscription.received = max(subscription.received, credit.received)
            subscription.limit = max(subscription.limit, credit.limit)
            self._pump(subscription)
        elif message.kind is Kind.PING:
            body = Pong(sent=subscription.sent, limit=subscription.limit, position=subscription.position)
            self._door.send(peer, Kind.PONG, message.id, body)
        elif message.kind is Kind.CANCEL:
            self._drop(subscription)
        else:
            self._fail(subscription, MisuseError(f"a subscription takes no {message.kind.name}"))
        return True

    def _pump(self, s: Subscription) -> None:
        cap = self._door.limits.changes
        allowed = min(s.limit, s.received + cap) - s.sent
        if s.busy or s.dead or not s.dirty or allowed <= 0:
            return
        s.busy = True
        s.dirty = False
        after, size = s.position, min(allowed, cap)
        self._pool.submit(s.peer.entry.public_key, lambda: self._read(s, after, size))

    def _read(self, s: Subscription, after: int, size: int) -> None:
        if s.dead:
            self._door.post(lambda: self._dying.discard(s))
            return
        with shield(lambda e: self._door.post(lambda: self._failed(s, e))):
            latest = self._position
            key = (s.call.view, s.filters, after, s.call.until, size, latest)
            with self._cache_lock:
                found, generation = self._cache.get(key), self._generation
            if found is None:
                found = self._fetch(s, after, size)
                with self._cache_lock:
                    if generation == self._generation:
                        self._cache[key] = found
                    while len(self._cache) > _CACHED:
                        self._cache.popitem(last=False)
            body, upto, count = found
            self._door.post(lambda: self._have(s, body, upto, count))

    def _fetch(self, s: Subscription, after: int, size: int) -> tuple[bytes, int, int]:
        filters = dict(s.call.filters)
        while True:
            changes, upto = self._service.changes(s.call.view, after=after, limit=size, filters=filters)
            if s.call.until is not None:
                changes = [c for c in changes if c.position <= s.call.until]
            body = encode(changes)
            if len(body) <= self._door.limits.page or size == 1:
                return body, max(upto, after), len(changes)
            size = max(1, size // 4)

    def _have(self, s: Subscription, body: bytes, upto: int, count: int) -> None:
        s.busy = False
        if s.dead:
            self._dying.discard(s)
            return
        if upto > s.position:
            s.dirty = True  # there may be more; nothing new ends it
            s.position = upto
            if count:
                span = Span(sent=s.sent, count=count, position=upto)
                s.sent += count
                self._door.send(s.peer, Kind.CHANGES, s.id, span, body)
        if s.call.until is not None and s.position >= s.call.until:
            self._door.send(s.peer, Kind.DONE, s.id, Length(length=s.sent))
            self._drop(s)
        self._pump(s)

    def _failed(self, s: Subscription, error: VaultError) -> None:
        s.busy = False
        self._dying.discard(s)
        self._fail(s, error)

    def _fail(self, s: Subscription, error: VaultError) -> None:
        if not s.dead:
            self._door.send_error(s.peer, s.id, error)
        self._drop(s)

    def _drop(self, s: Subscription) -> None:
        s.dead = True
        if s.busy:
            self._dying.add(s)
        self._subscriptions.pop((s.peer.rid, s.id), None)

    def on_gone(self, peer: Peer) -> None:
        """Drop what a connection had."""
        for s in [s for s in self._subscriptions.values() if s.peer is peer]:
            self._drop(s)
        for key in [k for k, w in self._waiters.items() if w.peer is peer]:
            del self._waiters[key]

    def on_tick(self, now: float) -> None:
        """Time out waits; cut silent subscribers."""
        for key, waiter in list(self._waiters.items()):
            if now >= waiter.deadline:
                self._answer(key, TimedOutError(f"position {waiter.position} was not reached in time: wait again"))
        for s in list(self._subscriptions.values()):
            if now - s.touched > self._door.limits.idle:
                # Whoever is still there, goes on from its position.
                self._door.send(s.peer, Kind.ERROR, s.id, GONE)
                self._drop(s)

    def close(self) -> None:
        """Stop listening to the service."""
        self._stop()
