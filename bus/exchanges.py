"""What a client has under way with its node: calls, downloads, uploads and subscriptions.

Each survives lost and repeated messages and new connections: it numbers what it got, ignores what it has,
and asks again for what is missing. State is touched by the link's thread only, unless said otherwise.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Final

import msgspec

from walytis_vault.bus.calls import Call, OpenCall, PublishCall, SubscribeCall
from walytis_vault.bus.link import ClosedError, Link, reported
from walytis_vault.bus.messages import Change
from walytis_vault.bus.protocol import (
    CHANGES,
    CREDIT,
    LENGTH,
    OPENED,
    PLACE,
    PONG,
    SPAN,
    STREAM_GONE,
    Attach,
    Credit,
    Header,
    Kind,
    Length,
    Nothing,
    Place,
    decode,
    pack,
    raised,
)
from walytis_vault.bus.sealing import TAG_BYTES, Seal
from walytis_vault.domain.errors import MisuseError, TimedOutError, TransportError, UntrustedInputError, VaultError

_REPEAT: Final = 1.0
_REPEAT_MOST: Final = 5.0
_KEEPALIVE: Final = 8.0
_FALL_BACK: Final = 3.0
"""Seconds without progress on the bulk socket after which data comes on the other."""
_Sealed = tuple[Seal, int, bytes | memoryview]
_SLOWEST: Final = 20 << 20
"""Bytes per second at which the slowest disk makes an upload durable."""
_NOTHING: Final = Nothing()


def new_id() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(16)


class CallExchange:
    """One request and its one reply; the future's result is the encoded body of the reply."""

    def __init__(self, link: Link, call: Call, request_id: bytes, timeout: float, data: bytes | None = None) -> None:
        self.id = request_id
        self.sent = False
        self.began = time.monotonic()
        self.future: Future[bytes] = Future()
        self._link = link
        self._parts = pack(Kind.REQUEST, request_id, call, data)
        self._deadline = self.began + timeout
        self._timeout = timeout
        self._repeat_in = _REPEAT
        self._repeat_at = self.began + _REPEAT

    def on_connected(self) -> None:
        """Send the request (again), byte for byte."""
        self._link.send_parts(self._parts)

    def on_message(self, message: Header) -> None:
        """Take the reply."""
        if message.kind is Kind.REPLY:
            self._link.end(self)
            if not self.future.done():
                self.future.set_result(message.body)
        elif message.kind is Kind.ERROR:
            self._link.end(self)
            self.fail(raised(reported(message)))

    def on_bulk(self, message: Header) -> None:
        """Calls have no data: ignored."""

    def on_tick(self, now: float) -> None:
        """Repeat it, under the same id, in case request or reply was lost; give up at the deadline."""
        if now >= self._deadline:
            self._link.end(self)
            self.fail(self._link.too_late(f"no answer within {self._timeout:g} s: retry with the same request id"))
        elif now >= self._repeat_at:
            self._repeat_in = min(2 * self._repeat_in, _REPEAT_MOST)
            self._repeat_at = now + self._repeat_in
            self._link.send_parts(self._parts)

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        if not self.future.done():
            self.future.set_exception(error)


class DownloadExchange:
    """A content on its way here. `next` belongs to one consumer thread."""

    def __init__(self, link: Link, content_id: str, timeout: float) -> None:
        self.id = new_id()
        self.sent = False
        self.began = self._progress = time.monotonic()
        self.length: int | None = None
        self._link = link
        self._content_id = content_id
        self._timeout = timeout
        self._got = 0
        self._consumed = 0
        self._credited = 0
        self._asked = 0.0
        self._ended = False
        self._queue: SimpleQueue[memoryview | _Sealed | VaultError | None] = SimpleQueue()
        self._seal: Seal | None = None
        self._no_bulk = False
        self._whole = -1

    def start(self) -> None:
        """Begin. From any thread."""
        self._link.begin(self)

    def next(self) -> memoryview | None:
        """The next piece, None at the end. Everything before was consumed. On the consumer's thread.

        Raises:
            VaultError: as the node reported; TimedOutError when nothing came for `timeout` seconds.
        """
        item = self._queue.get()
        if isinstance(item, VaultError):
            raise item
        if isinstance(item, tuple):
            seal, offset, data = item
            try:
                return memoryview(seal.open(offset, data))
            except UntrustedInputError as e:
                raise TransportError(f"{e}: request it again") from e
        return item

    def consumed(self, size: int) -> None:
        """Give credit for `size` more bytes. On the consumer's thread."""
        self._consumed += size
        if self._consumed - self._credited >= self._link.limits.window // 8 or self._consumed == self.length:
            self._credited = self._consumed
            self._link.post(self._credit)

    def cancel(self) -> None:
        """Stop it. From any thread; idempotent."""
        self._link.post(self._cancel)

    def _cancel(self) -> None:
        if not self._ended:
            self._ended = True
            self._link.send(Kind.CANCEL, self.id, _NOTHING)
            self._link.end(self)
            self._queue.put(MisuseError("the request was cancelled"))

    def _credit(self) -> None:
        limit = self._consumed + self._link.limits.window
        self._link.send(Kind.CREDIT, self.id, Credit(received=min(self._consumed, self._got), limit=limit))

    def _reopen(self) -> None:
        """Ask for the rest under a fresh stream id."""
        self._link.send(Kind.CANCEL, self.id, _NOTHING)
        self._link.end(self)
        self.id = new_id()
        self._link.begin(self)

    def on_connected(self) -> None:
        """Open at the first byte that is missing."""
        self._asked = time.monotonic()
        self._seal = None
        self._whole = -1
        call = OpenCall(
            content_id=self._content_id,
            offset=self._got,
            limit=self._consumed + self._link.limits.window,
            timeout_ms=min(86_400_000, int(self._timeout * 1000)),
            bulk=self._link.has_bulk and not self._no_bulk,
        )
        self._link.send(Kind.REQUEST, self.id, call)

    def on_message(self, message: Header) -> None:
        """Take what came, in order, once."""
        self._asked = time.monotonic()
        if message.kind is not Kind.PONG:
            self._progress = self._asked
        match message.kind:
            case Kind.CHUNK:
                offset = decode(PLACE, message.body).offset
                if offset == self._got:
                    self._got += len(message.data)
                    self._queue.put(memoryview(message.data))
                elif offset > self._got:
                    self._reopen()
            case Kind.OPENED:
                opened = decode(OPENED, message.body)
                if self.length is not None and self.length != opened.length:
                    raise UntrustedInputError("the content changed its length")
                self.length = opened.length
                if opened.bulk_key and self._seal is None:
                    self._seal = Seal(opened.bulk_key, self.id)
                    self._link.send_bulk(Kind.ATTACH, self.id, Attach(proof=self._seal.proof()))
            case Kind.DONE:
                length = decode(LENGTH, message.body).length
                if length == self._got:
                    self._finish(None)
                elif self._seal is not None:
                    self._whole = length  # the last data is on its way on the other socket
                else:
                    self._reopen()
            case Kind.ERROR:
                body = reported(message)
                if body.code == STREAM_GONE:
                    self._reopen()
                else:
                    self._finish(raised(body))
            case Kind.PONG:
                pong = decode(PONG, message.body)
                if pong.sent > self._got:
                    # The node sent more than came: something was lost, or is on its way on the other socket.
                    if self._seal is None or time.monotonic() - self._progress > _REPEAT:
                        self._reopen()
                elif pong.limit < self._consumed + self._link.limits.window:
                    self._credit()
            case _:
                pass

    def on_bulk(self, message: Header) -> None:
        """Take sealed data, in order, once. It is opened on the consumer's thread."""
        if message.kind is not Kind.CHUNK or self._seal is None:
            return
        offset = decode(PLACE, message.body).offset
        size = len(message.data) - TAG_BYTES
        if offset != self._got or size <= 0 or self._got + size > self._consumed + self._link.limits.window:
            return  # what is missing is asked for when PONG shows it
        self._progress = self._asked = time.monotonic()
        self._got += size
        self._queue.put((self._seal, offset, message.data))
        if self._got == self._whole:
            self._finish(None)

    def _finish(self, result: VaultError | None) -> None:
        self._ended = True
        self._link.end(self)
        if result is None:
            self._link.send(Kind.CREDIT, self.id, Credit(received=self._got, limit=self._got))
        self._queue.put(result)

    def on_tick(self, now: float) -> None:
        """Ask how far it is when nothing comes; keep it alive when the consumer is slow."""
        waiting = self._got < self._consumed + self._link.limits.window
        if self._seal is not None and waiting and now - self._progress > _FALL_BACK:
            self._no_bulk = True
            self._progress = now
            self._reopen()
        if self._link.connected and now - self._asked > (_REPEAT if waiting else _KEEPALIVE):
            self._asked = now
            if self.length is None:
                if now - self._progress > 2 * _REPEAT:
                    self.on_connected()
            else:
                self._link.send(Kind.PING, self.id, _NOTHING)
        if waiting and now - self._progress > self._timeout + _REPEAT:
            self._finish(self._link.too_late(f"nothing came for {self._timeout:g} s: request it again"))

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        self._finish(error)


class RestartError(Exception):
    """The upload must begin again from its first byte. Never leaves the client."""


class UploadExchange:
    """A content on its way to the node. `write` and `finish` belong to one producer thread."""

    def __init__(self, link: Link, call: PublishCall, request_id: bytes, timeout: float) -> None:
        self.id = request_id
        self.sent = False
        self.began = self._progress = time.monotonic()
        self.future: Future[bytes] = Future()
        self.content_id = ""
        self._link = link
        self._parts = pack(Kind.REQUEST, request_id, call)
        self._timeout = timeout
        self._condition = threading.Condition()
        self._attempt = 0
        self._producing = 0
        self._limit = -1
        self._offset = 0
        self._ending = False
        self._asked = 0.0
        self._seal: Seal | None = None
        self._last_key = b""
        self._call = call
        self._no_bulk = False

    def start(self) -> None:
        """Begin. From any thread."""
        self._link.begin(self)

    def restart(self) -> None:
        """Go on with the current attempt from byte 0. On the producer's thread, after RestartError."""
        with self._condition:
            self._producing = self._attempt
            self._offset = 0
            self._ending = False

    def write(self, data: bytes | memoryview) -> None:
        """Send data as credit allows; blocks. On the producer's thread.

        Raises:
            RestartError: begin again. VaultError: it has failed.
        """
        view = memoryview(data)
        while len(view):
            with self._condition:
                while self._offset >= self._limit and not self._over():
                    self._condition.wait()
                self._check()
                if self.future.done():
                    return
                part = view[: min(self._limit - self._offset, self._link.limits.chunk)]
                offset, attempt, seal = self._offset, self._attempt, self._seal
                self._offset += len(part)
            view = view[len(part) :]
            ready = part if seal is None else seal.seal(offset, part)
            self._link.post(lambda o=offset, p=ready, a=attempt: self._send(o, p, a))  # type: ignore[misc]

    def finish(self) -> bytes:
        """All was written: wait for the reply. On the producer's thread. Raises as `write`."""
        with self._condition:
            self._check()
            offset, attempt = self._offset, self._attempt
            self._ending = True
        self._link.post(lambda: self._end(offset, attempt))
        with self._condition:
            while not self._over():
                self._condition.wait()
            self._check()
        return self.future.result()

    def cancel(self) -> None:
        """Drop it. From any thread; idempotent."""
        self._link.post(self._cancel)

    def _cancel(self) -> None:
        if not self.future.done():
            self._link.send(Kind.CANCEL, self.id, _NOTHING)
            self._link.end(self)
            self.fail(MisuseError("the upload was cancelled: nothing was published"))

    def _over(self) -> bool:
        return self.future.done() or self._attempt != self._producing

    def _check(self) -> None:
        if self.future.done():
            error = self.future.exception()
            if error is not None:
                raise error
        elif self._attempt != self._producing:
            raise RestartError

    def _send(self, offset: int, data: memoryview | bytes, attempt: int) -> None:
        if attempt != self._attempt:
            return
        if isinstance(data, bytes):  # sealed
            self._link.send_bulk(Kind.DATA, self.id, Place(offset=offset), data)
        else:
            self._link.send(Kind.DATA, self.id, Place(offset=offset), data)

    def _end(self, offset: int, attempt: int) -> None:
        if attempt == self._attempt:
            self._link.send(Kind.END, self.id, Length(length=offset))

    def on_connected(self) -> None:
        """Begin again: the node drops what came over another connection, unless it is complete."""
        with self._condition:
            self._attempt += 1
            if self._attempt == 1:
                self._producing = 1
            self._limit = -1
            self._seal = None
            self._condition.notify_all()
        self._asked = self._progress = time.monotonic()
        bulk = self._link.has_bulk and not self._no_bulk
        self._parts = pack(Kind.REQUEST, self.id, msgspec.structs.replace(self._call, bulk=bulk))
        self._link.send_parts(self._parts)

    def on_message(self, message: Header) -> None:
        """Take credit and the reply."""
        self._asked = time.monotonic()
        if message.kind is not Kind.PONG:
            self._progress = self._asked
        match message.kind:
            case Kind.OPENED:
                opened = decode(OPENED, message.body)
                self.content_id = opened.content_id
                if opened.bulk_key and opened.bulk_key != self._last_key:
                    # A key that was used before is never used again: its nonces are spent.
                    self._last_key = opened.bulk_key
                    self._seal = Seal(opened.bulk_key, self.id)
                if not opened.bulk_key or self._seal is not None:
                    self._raise_limit(opened.limit)
            case Kind.GRANT:
                self._raise_limit(decode(CREDIT, message.body).limit)
            case Kind.PONG:
                if not self._ending:
                    self._raise_limit(decode(PONG, message.body).limit)
            case Kind.REPLY:
                self._link.end(self)
                with self._condition:
                    if not self.future.done():
                        self.future.set_result(message.body)
                    self._condition.notify_all()
            case Kind.ERROR:
                body = reported(message)
                if body.code == STREAM_GONE:
                    self.on_connected()
                else:
                    self._link.end(self)
                    self.fail(raised(body))
            case _:
                pass

    def on_bulk(self, message: Header) -> None:
        """The node sends nothing for uploads there: ignored."""

    def _raise_limit(self, limit: int) -> None:
        with self._condition:
            self._limit = max(self._limit, limit)
            self._condition.notify_all()

    def on_tick(self, now: float) -> None:
        """Ask when the node is silent; keep it alive when the producer is slow; give up at the timeout."""
        blocked = self._ending or self._offset >= self._limit
        if self._seal is not None and not self._ending and blocked and now - self._progress > _FALL_BACK:
            self._no_bulk = True
            self._link.send(Kind.CANCEL, self.id, _NOTHING)
            self.on_connected()
        if self._link.connected and now - self._asked > (_REPEAT if blocked else _KEEPALIVE):
            self._asked = now
            if self._limit < 0:
                self._link.send_parts(self._parts)
            else:
                self._link.send(Kind.PING, self.id, _NOTHING)
        # At the end the node makes everything durable, which takes the longer the more there is.
        patience = self._timeout + (self._offset / _SLOWEST if self._ending else 0)
        if now - self._progress > patience and (blocked or not self._link.connected):
            self._link.end(self)
            self.fail(self._link.too_late(f"no answer within {patience:g} s: retry with the same request id"))

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        with self._condition:
            if not self.future.done():
                self.future.set_exception(error)
            self._condition.notify_all()


class SubscriptionExchange:
    """Changes of a view, in order, without gap or repeat. `next` belongs to one consumer thread."""

    def __init__(self, link: Link, call: SubscribeCall) -> None:
        self.id = new_id()
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
            self._link.send(Kind.CANCEL, self.id, _NOTHING)
            self._link.end(self)
            self.fail(ClosedError("the subscription was closed"))

    def _credit(self) -> None:
        taken = self._taken - self._opened_taken
        received = max(0, min(taken, self._count))
        limit = max(0, taken + self._link.limits.changes)
        self._link.send(Kind.CREDIT, self.id, Credit(received=received, limit=limit))

    def _again(self) -> None:
        self._link.send(Kind.CANCEL, self.id, _NOTHING)
        self._link.end(self)
        self.id = new_id()
        self._link.begin(self)

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
        if self._link.connected and now - self._asked > _KEEPALIVE:
            self._asked = now
            self._link.send(Kind.PING, self.id, _NOTHING)

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        self._ended = True
        self._queue.put(error)
        if self.notify is not None:
            self.notify()


__all__ = [
    "CallExchange",
    "DownloadExchange",
    "RestartError",
    "SubscriptionExchange",
    "UploadExchange",
    "new_id",
]
