"""A content on its way to a client: numbered, resumed where it was, and opened on the consumer's thread.

State is touched by the link's thread only, unless said otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import SimpleQueue

from walytis_vault.bus import pace, turns
from walytis_vault.bus.calls import OpenCall
from walytis_vault.bus.exchange import reported
from walytis_vault.bus.link import Link
from walytis_vault.bus.pace import NOTHING_BODY, new_id
from walytis_vault.bus.protocol import (
    LENGTH,
    OPENED,
    PLACE,
    PONG,
    STREAM_GONE,
    Attach,
    Credit,
    Header,
    Kind,
    decode,
    raised,
)
from walytis_vault.bus.requests import milliseconds
from walytis_vault.bus.sealing import TAG_BYTES, Seal
from walytis_vault.domain.errors import MisuseError, TransportError, UntrustedInputError, VaultError

_Sealed = tuple[Seal, int, bytes | memoryview]


class DownloadExchange:
    """A content on its way here. `next` belongs to one consumer thread."""

    def __init__(self, link: Link, content_id: str, timeout: float) -> None:
        self.id = new_id()
        self.lane: turns.Kind = "download"
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
        self._bulk_came = False
        self._opened = 0.0
        self._whole = -1
        self._told = -1

    def start(self) -> None:
        """Begin. From any thread."""
        self._link.begin(self)

    def next(self, room: Callable[[int], memoryview] | None = None) -> memoryview | None:
        """The next piece, None at the end. Everything before was consumed. On the consumer's thread.

        Args:
            room: gives memory for so many bytes, into which the piece is put.
        Raises:
            VaultError: as the node reported; TimedOutError when nothing came for `timeout` seconds.
        """
        item = self._queue.get()
        if isinstance(item, VaultError):
            raise item
        if isinstance(item, tuple):
            seal, offset, data = item
            try:
                if room is None:
                    return memoryview(seal.open(offset, data))
                piece = room(len(data) - TAG_BYTES)
                seal.open_into(offset, data, piece)
                return piece
            except UntrustedInputError as e:
                raise TransportError(f"{e}: request it again") from e
        if item is not None and room is not None:
            piece = room(len(item))
            piece[:] = item
            return piece
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
            self._link.send(Kind.CANCEL, self.id, NOTHING_BODY)
            self._link.end(self)
            self._queue.put(MisuseError("the request was cancelled"))

    def _credit(self) -> None:
        if self._ended:
            return  # the end was acknowledged when it came
        self._told = min(self._consumed, self._got)
        limit = self._consumed + self._link.limits.window
        self._link.send(Kind.CREDIT, self.id, Credit(received=self._told, limit=limit))

    def _reopen(self) -> None:
        """Ask for the rest under a fresh stream id."""
        self._link.send(Kind.CANCEL, self.id, NOTHING_BODY)
        self._link.rename(self, new_id())

    def on_connected(self) -> None:
        """Open at the first byte that is missing."""
        self._asked = time.monotonic()
        self._opened = self._asked
        self._bulk_came = False
        self._seal = None
        self._whole = self._told = -1
        call = OpenCall(
            content_id=self._content_id,
            offset=self._got,
            limit=self._consumed + self._link.limits.window,
            timeout_ms=milliseconds(self._timeout),
            bulk=self._link.has_bulk and not self._no_bulk,
        )
        self._link.send(Kind.REQUEST, self.id, call)

    def on_message(self, message: Header) -> None:
        """Take what came, in order, once."""
        self._asked = time.monotonic()
        if message.kind not in (Kind.PONG, Kind.OPENED) or self.length is None:
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
                if len(message.data):
                    if len(message.data) != opened.length - self._got:
                        raise UntrustedInputError("the content is not as long as the node said")
                    self._got = self._told = opened.length  # it came whole: the node waits for no word
                    self._queue.put(memoryview(message.data))
                    self._finish(None)
                elif opened.bulk_key and self._seal is None:
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
                    now = time.monotonic()
                    if self._seal is None or now - max(self._progress, self._opened) > pace.REPEAT:
                        self._no_bulk = self._no_bulk or (self._seal is not None and not self._bulk_came)
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
        self._bulk_came = True
        self._got += size
        self._queue.put((self._seal, offset, message.data))
        if self._got == self._whole:
            self._finish(None)

    def _finish(self, result: VaultError | None) -> None:
        self._ended = True
        self._link.end(self)
        if result is None and self._told < self._got:
            self._link.send(Kind.CREDIT, self.id, Credit(received=self._got, limit=self._got))
        self._queue.put(result)

    def on_tick(self, now: float) -> None:
        """Ask how far it is when nothing comes; keep it alive when the consumer is slow."""
        waiting = self._got < self._consumed + self._link.limits.window
        if self._link.in_line(self):
            self._asked = now
            self._progress = max(self._progress, self._link.moved)  # it is patient as long as others get on
        silent = now - max(self._progress, self._opened) > pace.FALL_BACK
        if self._seal is not None and waiting and not self._bulk_came and silent:
            self._no_bulk = True
            self._reopen()
        if self._link.connected and now - self._asked > (pace.REPEAT if waiting else pace.KEEPALIVE):
            self._asked = now
            if self.length is None:
                if now - self._progress > 2 * pace.REPEAT:
                    self.on_connected()
            else:
                self._link.send(Kind.PING, self.id, NOTHING_BODY)
        if waiting and now - self._progress > self._timeout + pace.REPEAT:
            self._finish(self._link.too_late(f"nothing came for {self._timeout:g} s: request it again"))

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        self._finish(error)
