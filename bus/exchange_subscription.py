"""A client's subscription: changes in order, without gap or repeat, over any number of connections.

State is touched by the link's thread only, unless said otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec

from walytis_vault.bus import pace, turns
from walytis_vault.bus.calls import SubscribeCall
from walytis_vault.bus.exchange import ClosedError, reported
from walytis_vault.bus.link import Link
from walytis_vault.bus.messages import Change
from walytis_vault.bus.pace import NOTHING_BODY, new_id
from walytis_vault.bus.protocol import (
    CHANGES,
    LENGTH,
    PONG,
    SPAN,
    STREAM_GONE,
    Credit,
    Header,
    Kind,
    decode,
    raised,
)
from walytis_vault.domain.errors import TimedOutError, VaultError


class SubscriptionExchange:
    """Changes of a view, in order, without gap or repeat. `next` belongs to one consumer thread."""

    def __init__(self, link: Link, call: SubscribeCall) -> None:
        self.id = new_id()
        self.lane: turns.Kind = ""
        self.sent = False
        self.began = time.monotonic()
        self._link = link
        self._call = call
        self._position = call.after
        self._count = 0
        self._taken = 0
        self._credited = 0
        self._opened_taken = 0
        self._asked = 0.0
        self._ended = False
        self._queue: SimpleQueue[Change | VaultError] = SimpleQueue()
        self.notify: Callable[[], None] | None = None
        """Called on the link's thread when `next` would find something."""

    def start(self) -> None:
        """Begin. From any thread."""
        self._link.begin(self)

    def next(self, timeout: float | None = None) -> Change:
        """Wait for the next change. On the consumer's thread.

        Args:
            timeout: seconds; 0 does not wait, None waits for ever.
        Raises:
            VaultError: as the node reported. ClosedError: it or the client was closed. TimedOutError.
        """
        try:
            item = self._queue.get_nowait() if timeout == 0 else self._queue.get(timeout=timeout)
        except Empty as e:
            raise TimedOutError(f"no change within {timeout or 0:g} s") from e
        if isinstance(item, VaultError):
            self._queue.put(item)  # for whoever asks again
            raise item
        self._taken += 1
        if self._taken - self._credited >= self._link.limits.changes // 4:
            self._credited = self._taken
            self._link.post(self._credit)
        return item

    def cancel(self) -> None:
        """Stop it. From any thread; idempotent."""
        self._link.post(self._cancel)

    def _cancel(self) -> None:
        if not self._ended:
            self._link.send(Kind.CANCEL, self.id, NOTHING_BODY)
            self._link.end(self)
            self.fail(ClosedError("the subscription was closed"))

    def _credit(self) -> None:
        taken = self._taken - self._opened_taken
        received = max(0, min(taken, self._count))
        limit = max(0, taken + self._link.limits.changes)
        self._link.send(Kind.CREDIT, self.id, Credit(received=received, limit=limit))

    def _again(self) -> None:
        self._link.send(Kind.CANCEL, self.id, NOTHING_BODY)
        self._link.rename(self, new_id())

    def on_connected(self) -> None:
        """Go on after the last change that came. Changes that came and were not taken count as credit used."""
        self._asked = time.monotonic()
        self._opened_taken = self._opened_taken + self._count
        self._count = 0
        unread = self._opened_taken - self._taken
        limit = max(0, self._link.limits.changes - unread)
        call = msgspec.structs.replace(self._call, after=self._position, limit=limit)
        self._link.send(Kind.REQUEST, self.id, call)

    def on_message(self, message: Header) -> None:
        """Take what came, in order, once."""
        self._asked = time.monotonic()
        match message.kind:
            case Kind.CHANGES:
                span = decode(SPAN, message.body)
                if span.sent == self._count:
                    changes = decode(CHANGES, bytes(message.data))
                    self._count += len(changes)
                    self._position = span.position
                    for change in changes:
                        self._queue.put(change)
                    if self.notify is not None:
                        self.notify()
                elif span.sent > self._count:
                    self._again()
            case Kind.DONE:
                if decode(LENGTH, message.body).length != self._count:
                    self._again()
                else:
                    self._link.end(self)
                    self.fail(ClosedError("the subscription came to its end"))
            case Kind.PONG:
                pong = decode(PONG, message.body)
                if pong.sent > self._count:
                    self._again()  # the node sent more than came: something was lost
                    return
                self._position = max(self._position, pong.position)
                if pong.limit < self._taken - self._opened_taken + self._link.limits.changes // 2:
                    self._credit()
            case Kind.ERROR:
                body = reported(message)
                if body.code == STREAM_GONE:
                    self._again()
                else:
                    self._link.end(self)
                    self.fail(raised(body))
            case _:
                pass

    def on_bulk(self, message: Header) -> None:
        """Subscriptions have no data: ignored."""

    def on_tick(self, now: float) -> None:
        """Keep it alive, and find out whether something was lost."""
        if self._link.connected and now - self._asked > pace.KEEPALIVE:
            self._asked = now
            self._link.send(Kind.PING, self.id, NOTHING_BODY)

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        self._ended = True
        self._queue.put(error)
        if self.notify is not None:
            self.notify()
