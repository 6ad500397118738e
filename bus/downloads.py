"""Downloads: contents on their way to clients, pulled by byte credit.

A worker reads verified plaintext only as far as the client's credit and the node's own limits allow, so a
client that stops taking costs one open file. State is touched by the door's thread only, the reader by one
worker at a time. Spec: docs/bus-protocol.md, "Downloads".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from walytis_vault.bus.budget import Budget
from walytis_vault.bus.calls import OpenCall
from walytis_vault.bus.door import Door, Peer
from walytis_vault.bus.errors import shield
from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.protocol import CREDIT, Credit, Header, Kind, Length, Opened, Place, Pong, decode
from walytis_vault.bus.service import VaultService
from walytis_vault.domain.errors import MisuseError, VaultError
from walytis_vault.domain.ports import ContentReader

_BATCH = 4 << 20
"""Bytes that a worker reads before others get their turn."""


class Download:
    """One content being sent to one connection."""

    def __init__(self, peer: Peer, stream_id: bytes, call: OpenCall) -> None:
        self.peer = peer
        self.id = stream_id
        self.call = call
        self.reader: ContentReader | None = None
        self.length = -1
        self.sent = call.offset
        self.received = call.offset
        self.limit = call.limit
        self.ready: deque[memoryview] = deque()
        self.busy = True
        self.ended = False
        self.dead = False
        self.touched = time.monotonic()


class Downloads:
    """All downloads of a node."""

    def __init__(self, door: Door, service: VaultService, pool: FairPool, budget: Budget) -> None:
        self._door = door
        self._service = service
        self._pool = pool
        self._budget = budget
        self._streams: dict[tuple[bytes, bytes], Download] = {}
        self._starved: dict[tuple[bytes, bytes], Download] = {}

    def count(self, name: str) -> int:
        """Downloads that a client key has open."""
        return sum(1 for s in self._streams.values() if s.peer.entry.name == name)

    def open(self, peer: Peer, stream_id: bytes, call: OpenCall) -> None:
        """Begin a download, or answer again when it was asked for again."""
        stream = self._streams.get((peer.rid, stream_id))
        if stream is not None:
            if stream.length >= 0:
                self._door.send(peer, Kind.OPENED, stream_id, Opened(length=stream.length))
            return
        stream = self._streams[peer.rid, stream_id] = Download(peer, stream_id, call)
        self._pool.submit(peer.rid, lambda: self._open(stream))

    def _open(self, stream: Download) -> None:
        call = stream.call
        with shield(lambda e: self._door.post(lambda: self._failed(stream, e))):
            reader = self._service.open_content(call.content_id, timeout=call.timeout_ms / 1000)
            stream.reader = reader
            length = reader.length
            if call.offset > length:
                raise MisuseError(f"offset {call.offset} is behind the end of content {call.content_id}")
            skip = call.offset
            first = b""
            while skip and (piece := reader.read()):
                first = piece[skip:]
                skip -= min(skip, len(piece))
            self._door.post(lambda: self._opened(stream, length, first))

    def _opened(self, stream: Download, length: int, first: bytes) -> None:
        stream.length = length
        stream.busy = False
        if first:
            stream.ready.append(memoryview(first))
        self._door.send(stream.peer, Kind.OPENED, stream.id, Opened(length=length))
        self._pump(stream)

    def on_message(self, peer: Peer, message: Header) -> bool:
        """Handle a message if it belongs to a download; False if there is none of that id."""
        stream = self._streams.get((peer.rid, message.id))
        if stream is None:
            return False
        stream.touched = time.monotonic()
        if message.kind is Kind.CREDIT:
            credit = decode(CREDIT, message.body)
            self._credit(stream, credit)
        elif message.kind is Kind.PING:
            self._door.send(peer, Kind.PONG, message.id, Pong(sent=stream.sent, limit=stream.limit))
        elif message.kind is Kind.CANCEL:
            self._drop(stream)
        else:
            self._fail(stream, MisuseError(f"a download takes no {message.kind.name}"))
        return True

    def _credit(self, stream: Download, credit: Credit) -> None:
        if credit.received > stream.sent:
            self._fail(stream, MisuseError("credit for bytes that were never sent"))
            return
        if credit.received > stream.received:
            self._budget.give(stream.peer, credit.received - stream.received)
            stream.received = credit.received
        stream.limit = max(stream.limit, credit.limit)
        if stream.ended and stream.received == stream.sent:
            self._drop(stream)
        else:
            self._pump(stream)
        self._feed_starved()

    def _feed_starved(self) -> None:
        for stream in list(self._starved.values()):
            if self._budget.room(stream.peer) > 0:
                self._starved.pop((stream.peer.rid, stream.id), None)
                self._pump(stream)

    def _pump(self, stream: Download) -> None:
        """Send what is ready as far as credit goes; then have more read."""
        if stream.dead:
            return
        chunk = self._door.limits.chunk
        while stream.ready:
            allowed = self._allowed(stream)
            if allowed <= 0:
                return
            piece = stream.ready[0]
            part = piece[: min(len(piece), chunk, allowed)]
            self._budget.take(stream.peer, len(part))
            self._door.send(stream.peer, Kind.CHUNK, stream.id, Place(offset=stream.sent), part)
            if stream.dead:
                return
            stream.sent += len(part)
            if len(part) == len(piece):
                stream.ready.popleft()
            else:
                stream.ready[0] = piece[len(part) :]
        if stream.ended or stream.busy:
            return
        if stream.sent == stream.length:
            self._end(stream)
            return
        allowed = self._allowed(stream)
        if allowed > 0:
            stream.busy = True
            size = min(allowed, _BATCH)
            self._pool.submit(stream.peer.rid, lambda: self._read(stream, size))

    def _allowed(self, stream: Download) -> int:
        allowed = min(stream.limit, stream.received + self._door.limits.window) - stream.sent
        room = self._budget.room(stream.peer)
        if allowed > 0 and room <= 0:
            self._starved[stream.peer.rid, stream.id] = stream
        return min(allowed, room)

    def _read(self, stream: Download, size: int) -> None:
        reader = stream.reader
        assert reader is not None
        with shield(lambda e: self._door.post(lambda: self._failed(stream, e))):
            while not stream.dead:
                piece = reader.read()
                size -= len(piece)
                if not piece or size <= 0:
                    self._door.post(lambda piece=piece: self._have(stream, piece, last=True))  # type: ignore[misc]
                    return
                self._door.post(lambda piece=piece: self._have(stream, piece, last=False))  # type: ignore[misc]
        if stream.dead:
            self._close(stream)

    def _have(self, stream: Download, piece: bytes, *, last: bool) -> None:
        stream.busy = not last
        if stream.dead:
            if last:
                self._close(stream)
            return
        if piece:
            stream.ready.append(memoryview(piece))
        elif stream.sent + sum(map(len, stream.ready)) < stream.length:
            self._fail(stream, VaultError("the content ended early: run `walytis-vault audit --read-data`"))
            return
        self._pump(stream)

    def _end(self, stream: Download) -> None:
        stream.ended = True
        self._door.send(stream.peer, Kind.DONE, stream.id, Length(length=stream.length))
        if stream.received == stream.sent:
            self._drop(stream)

    def _failed(self, stream: Download, error: VaultError) -> None:
        """The worker met an error, and has let go of the reader."""
        stream.busy = False
        if stream.dead:
            self._close(stream)
        self._fail(stream, error)

    def _fail(self, stream: Download, error: VaultError) -> None:
        if not stream.dead:
            self._door.send_error(stream.peer, stream.id, error)
        self._drop(stream)

    def _drop(self, stream: Download) -> None:
        key = (stream.peer.rid, stream.id)
        if self._streams.pop(key, None) is not None:
            self._budget.give(stream.peer, stream.sent - stream.received)
        self._starved.pop(key, None)
        stream.dead = True
        stream.ready.clear()
        if not stream.busy:
            self._close(stream)

    def _close(self, stream: Download) -> None:
        reader, stream.reader = stream.reader, None
        if reader is not None:
            self._pool.submit(stream.peer.rid, _closer(reader))

    def on_gone(self, peer: Peer) -> None:
        """Drop the downloads of a connection."""
        for stream in [s for s in self._streams.values() if s.peer is peer]:
            self._drop(stream)
        self._feed_starved()

    def on_tick(self, now: float) -> None:
        """Cut what is silent; a connection that holds undelivered bytes is cut with it, to free them."""
        for stream in list(self._streams.values()):
            if not stream.busy and now - stream.touched > self._door.limits.idle:
                if stream.sent > stream.received:
                    self._door.cut(stream.peer, "it takes nothing of a download")
                self._drop(stream)

    def close(self) -> None:
        """Close all readers; the pool has ended."""
        for stream in list(self._streams.values()):
            stream.dead = True
            if stream.reader is not None:
                _closer(stream.reader)()
        self._streams.clear()


def _closer(reader: ContentReader) -> Callable[[], None]:
    def close() -> None:
        with shield(lambda _: None):
            reader.close()

    return close
