"""A content on its way to the node, as credit allows; begun again when the connection was lost.

State is shared by the link's thread and the producer's, under one condition.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import msgspec

from walytis_vault.bus import pace, turns
from walytis_vault.bus.calls import PublishCall
from walytis_vault.bus.exchange import reported
from walytis_vault.bus.link import Link
from walytis_vault.bus.pace import NOTHING_BODY
from walytis_vault.bus.protocol import (
    CREDIT,
    OPENED,
    PONG,
    STREAM_GONE,
    Header,
    Kind,
    Length,
    Place,
    decode,
    pack,
    raised,
)
from walytis_vault.bus.sealing import Seal
from walytis_vault.domain.errors import MisuseError, VaultError


class RestartError(Exception):
    """The upload must begin again from its first byte. Never leaves the client."""


class UploadExchange:
    """A content on its way to the node. `write` and `finish` belong to one producer thread."""

    def __init__(self, link: Link, call: PublishCall, request_id: bytes, timeout: float) -> None:
        self.id = request_id
        self.lane: turns.Kind = "upload"
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
        self._arrived = 0

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
            # Without data nothing has waited for the node to open the stream: an end before that would be lost.
            while self._limit < 0 and not self._over():
                self._condition.wait()
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
            self._link.send(Kind.CANCEL, self.id, NOTHING_BODY)
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
            self._arrived = 0
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
        if self._limit < 0 and message.kind in (Kind.GRANT, Kind.PONG):
            return  # about the attempt before: this one is not open yet
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
                pong = decode(PONG, message.body)
                if pong.sent > self._arrived:
                    self._arrived = pong.sent
                    self._progress = self._asked
                if not self._ending:
                    self._raise_limit(pong.limit)
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
        if self._link.in_line(self):
            self._asked = now
            self._progress = max(self._progress, self._link.moved)  # it is patient as long as others get on
        lost = self._arrived < self._offset and now - self._progress > pace.FALL_BACK
        if self._seal is not None and blocked and lost:
            self._no_bulk = True
            self._link.send(Kind.CANCEL, self.id, NOTHING_BODY)
            self.on_connected()
        if self._link.connected and now - self._asked > (pace.REPEAT if blocked else pace.KEEPALIVE):
            self._asked = now
            if self._limit < 0:
                self._link.send_parts(self._parts)
            else:
                self._link.send(Kind.PING, self.id, NOTHING_BODY)
        # At the end the node makes everything durable, which takes the longer the more there is.
        patience = self._timeout + (self._offset / pace.SLOWEST if self._ending else 0)
        if now - self._progress > patience and (blocked or not self._link.connected):
            self._link.end(self)
            self.fail(self._link.too_late(f"no answer within {patience:g} s: retry with the same request id"))

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        with self._condition:
            if not self.future.done():
                self.future.set_exception(error)
            self._condition.notify_all()
