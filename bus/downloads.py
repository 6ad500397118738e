"""Downloads: contents on their way to clients, pulled by byte credit.

A worker reads verified plaintext only as far as the client's credit and the node's own limits allow, so a
client that stops taking costs one open file. What must come from peers first is waited for on threads of its
own, and given up when the client has gone. State is touched by the door's thread only, the reader by one
worker at a time. Spec: docs/bus-protocol.md, "Downloads".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from walytis_vault.bus.budget import Budget
from walytis_vault.bus.calls import OpenCall
from walytis_vault.bus.door import Door
from walytis_vault.bus.errors import shield
from walytis_vault.bus.peer import Peer
from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.protocol import ATTACH, CREDIT, GONE, Credit, Header, Kind, Length, Opened, Place, Pong, decode
from walytis_vault.bus.sealing import Seal, new_key
from walytis_vault.bus.security import ClientEntry
from walytis_vault.bus.service import VaultService
from walytis_vault.domain.errors import MisuseError, NotYetAvailableError, TimedOutError, VaultError
from walytis_vault.domain.ports import ContentReader

_BATCH = 4 << 20
"""Bytes that a worker reads before others get their turn."""


class Download:
    """One content being sent to one connection."""

    def __init__(self, peer: Peer, stream_id: bytes, call: OpenCall, pool: FairPool) -> None:
        self.peer = peer
        self.id = stream_id
        self.call = call
        self.pool = pool
        """Where its reads run."""
        self.reader: ContentReader | None = None
        self.length = -1
        self.sent = call.offset
        self.received = call.offset
        self.limit = call.limit
        self.ready: deque[tuple[int, bytes | memoryview]] = deque()
        """Bytes of content, and what to send for them."""
        self.seal: Seal | None = None
        self.bulk_key = b""
        self.bulk: Peer | None = None
        self.produced = call.offset
        """How far the worker has read."""
        self.busy = True
        self.ended = False
        self.dead = False
        self.began = self.touched = time.monotonic()


class Downloads:
    """All downloads of a node."""

    def __init__(self, door: Door, service: VaultService, pool: FairPool, fetches: FairPool, budget: Budget) -> None:
        self._door = door
        self._service = service
        self._pool = pool
        self._fetches = fetches
        self._budget = budget
        self._streams: dict[tuple[bytes, bytes], Download] = {}
        self._starved: dict[tuple[bytes, bytes], Download] = {}
        self._sealed: dict[bytes, Download] = {}
        self._dying: set[Download] = set()
        """Those that have ended, and that a worker has not let go of."""

    @property
    def open_count(self) -> int:
        """How many are open, of all clients."""
        return len(self._streams)

    def count(self, name: str) -> int:
        """Downloads that a client key has open, or that a worker still has in hand."""
        return sum(1 for s in [*self._streams.values(), *self._dying] if s.peer.entry.name == name)

    def open(self, peer: Peer, stream_id: bytes, call: OpenCall) -> None:
        """Begin a download, or answer again when it was asked for again."""
        stream = self._streams.get((peer.rid, stream_id))
        if stream is not None:
            stream.touched = time.monotonic()
            if stream.length >= 0:
                self._announce(stream)
            return
        stream = self._streams[peer.rid, stream_id] = Download(peer, stream_id, call, self._pool)
        self._pool.submit(peer.entry.public_key, lambda: self._open(stream))

    def _open(self, stream: Download) -> None:
        """On a worker of the many: what is not here is left to those who may wait."""
        if stream.dead:
            self._door.post(lambda: self._let_go(stream))
            return
        call = stream.call
        with shield(lambda e: self._door.post(lambda: self._failed(stream, e))):
            try:
                reader = self._service.open_content(call.content_id, timeout=0)
            except (TimedOutError, NotYetAvailableError):
                if not call.timeout_ms:
                    raise
            else:
                if reader.here:
                    self._begin(stream, reader)
                    return
                reader.close()
            stream.pool = self._fetches
            stream.pool.submit(stream.peer.entry.public_key, lambda: self._fetch(stream))

    def _fetch(self, stream: Download) -> None:
        """On a worker that may wait."""
        if stream.dead:
            self._door.post(lambda: self._let_go(stream))
            return
        left = stream.began + stream.call.timeout_ms / 1000 - time.monotonic()
        with shield(lambda e: self._door.post(lambda: self._failed(stream, e))):
            reader = self._service.open_content(
                stream.call.content_id, timeout=max(0.0, left), given_up=lambda: stream.dead
            )
            self._begin(stream, reader)

    def _begin(self, stream: Download, reader: ContentReader) -> None:
        call = stream.call
        with shield(lambda e: self._door.post(lambda: self._failed(stream, e))):
            stream.reader = reader
            length = reader.length
            if call.offset > length:
                raise MisuseError(f"offset {call.offset} is behind the end of content {call.content_id}")
            skip = call.offset
            first = b""
            while skip and (piece := reader.read()):
                first = piece[skip:]
                skip -= min(skip, len(piece))
            if call.bulk and self._door.has_bulk and length - call.offset >= self._door.limits.bulk_least:
                stream.bulk_key = new_key()
                stream.seal = Seal(stream.bulk_key, stream.id)
            if 0 < length - call.offset <= self._door.limits.inline and length <= call.limit:
                # The client takes all of it at once: one message, and nothing of it is left here.
                while len(first) < length - call.offset and (piece := reader.read()):
                    first += piece
                stream.reader = None
                reader.close()
                self._door.post(lambda: self._opened_whole(stream, length, first))
                return
            ready = self._cut(stream, first)
            self._door.post(lambda: self._opened(stream, length, ready))

    def _cut(self, stream: Download, piece: bytes) -> list[tuple[int, bytes | memoryview]]:
        """What to send for a piece: sealed in chunks for the bulk socket, as it is for the other. On a worker."""
        offset = stream.produced
        stream.produced += len(piece)
        view = memoryview(piece)
        if stream.seal is None:
            return [(len(piece), view)] if piece else []
        # It goes whole or not at all: never more than the client's first credit.
        limits, credit = self._door.limits, stream.call.limit - stream.call.offset
        chunk = max(limits.chunk, min(limits.bulk_chunk, limits.window, credit))
        parts = ((offset + at, view[at : at + chunk]) for at in range(0, len(piece), chunk))
        return [(len(part), stream.seal.seal(at, part)) for at, part in parts]

    def _opened(self, stream: Download, length: int, ready: list[tuple[int, bytes | memoryview]]) -> None:
        stream.length = length
        stream.busy = False
        stream.ready.extend(ready)
        if stream.dead:
            self._close(stream)
            return
        if stream.seal is not None and self._sealed.setdefault(stream.id, stream) is not stream:
            self._fail(stream, MisuseError("this stream id is in use: make ids at random"))
            return
        self._announce(stream)
        self._pump(stream)

    def _opened_whole(self, stream: Download, length: int, data: bytes) -> None:
        """Send a small content. Whoever does not take it is bounded as with any other reply."""
        stream.length = length
        stream.busy = False
        if stream.dead:
            self._close(stream)
        elif len(data) != length - stream.call.offset:
            self._fail(stream, VaultError("the content ended early: run `walytis-vault audit --read-data`"))
        else:
            self._door.send(stream.peer, Kind.OPENED, stream.id, Opened(length=length), data)
            self._drop(stream)

    def _announce(self, stream: Download) -> None:
        body = Opened(length=stream.length, bulk_key=stream.bulk_key)
        self._door.send(stream.peer, Kind.OPENED, stream.id, body)

    def on_bulk(self, message: Header, connect: Callable[[ClientEntry], Peer]) -> None:
        """ATTACH on the bulk socket: whoever proves to have a stream's key gets its data."""
        stream = self._sealed.get(message.id)
        if stream is None or stream.seal is None or stream.bulk is not None:
            return
        if stream.seal.proves(decode(ATTACH, message.body).proof):
            stream.bulk = connect(stream.peer.entry)
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
            if stream.length < 0:  # it was not opened yet
                self._door.hold_against(peer)
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
        while stream.ready:
            if not self._send_next(stream):
                return
        if stream.ended or stream.busy:
            return
        if stream.sent == stream.length:
            self._end(stream)
            return
        allowed = self._allowed(stream)
        if allowed > 0:
            stream.busy = True
            size = min(allowed, _BATCH)
            stream.pool.submit(stream.peer.entry.public_key, lambda: self._read(stream, size))

    def _send_next(self, stream: Download) -> bool:
        """Send one chunk of what is ready; False when that must wait. A sealed one goes whole or not at all."""
        size, data = stream.ready[0]
        peer = stream.peer
        if stream.seal is None:
            size = min(size, self._door.limits.chunk, self._allowed(stream))
            if size <= 0:
                return False
            part = data[:size]
        else:
            if stream.bulk is None or self._allowed(stream, size) < size:
                return False
            peer, part = stream.bulk, data
        self._budget.take(stream.peer, size)
        self._door.send(peer, Kind.CHUNK, stream.id, Place(offset=stream.sent), part)
        if stream.dead:
            self._budget.give(stream.peer, size)
            return False
        stream.sent += size
        rest = stream.ready.popleft()
        if rest[0] > size:
            stream.ready.appendleft((rest[0] - size, rest[1][size:]))
        return True

    def _allowed(self, stream: Download, least: int = 1) -> int:
        allowed = min(stream.limit, stream.received + self._door.limits.window) - stream.sent
        room = self._budget.room(stream.peer)
        if allowed >= least > room:
            self._starved[stream.peer.rid, stream.id] = stream
        return min(allowed, room)

    def _read(self, stream: Download, size: int) -> None:
        reader = stream.reader
        assert reader is not None
        with shield(lambda e: self._door.post(lambda: self._failed(stream, e))):
            while not stream.dead:
                piece = reader.read()
                size -= len(piece)
                last = not piece or size <= 0
                ready = self._cut(stream, piece)
                self._door.post(lambda ready=ready, last=last: self._have(stream, ready, last=last))  # type: ignore[misc]
                if last:
                    return
        if stream.dead:
            self._door.post(lambda: self._let_go(stream))

    def _let_go(self, stream: Download) -> None:
        """The worker has let go of one that ended meanwhile."""
        stream.busy = False
        self._close(stream)

    def _have(self, stream: Download, ready: list[tuple[int, bytes | memoryview]], *, last: bool) -> None:
        stream.busy = not last
        if stream.dead:
            if last:
                self._close(stream)
            return
        stream.ready.extend(ready)
        if not ready and stream.sent + sum(size for size, _ in stream.ready) < stream.length:
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
        if self._sealed.get(stream.id) is stream:
            del self._sealed[stream.id]
        stream.dead = True
        stream.ready.clear()
        self._dying.add(stream)
        reader = stream.reader
        if not stream.busy:
            self._close(stream)
        elif reader is not None and not reader.here:
            reader.close()  # its worker waits for a peer

    def _close(self, stream: Download) -> None:
        reader, stream.reader = stream.reader, None
        if reader is None:
            self._dying.discard(stream)
            return

        def close() -> None:
            _closer(reader)()
            self._door.post(lambda: self._dying.discard(stream))

        self._pool.submit(stream.peer.entry.public_key, close)

    def on_gone(self, peer: Peer) -> None:
        """Drop the downloads of a connection; say so on the other one, if it was the one for bulk."""
        for stream in [s for s in self._streams.values() if peer in (s.peer, s.bulk)]:
            if stream.peer is not peer:
                self._door.send(stream.peer, Kind.ERROR, stream.id, GONE)
            self._drop(stream)
        self._feed_starved()

    def on_tick(self, now: float) -> None:
        """Cut what is silent; a connection that holds undelivered bytes is cut with it, to free them."""
        for stream in list(self._streams.values()):
            if now - stream.touched > self._door.limits.idle:
                if stream.sent > stream.received:
                    self._door.cut(stream.bulk or stream.peer, "it takes nothing of a download")
                self._drop(stream)

    def close(self) -> None:
        """Close all readers; the pool has ended."""
        for stream in [*self._streams.values(), *self._dying]:
            stream.dead = True
            if stream.reader is not None:
                _closer(stream.reader)()
        self._streams.clear()


def _closer(reader: ContentReader) -> Callable[[], None]:
    def close() -> None:
        with shield(lambda _: None):
            reader.close()

    return close
