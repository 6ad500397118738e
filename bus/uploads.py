"""Uploads: contents on their way from clients, granted byte credit as fast as they are written.

A client may send only what it was granted; more ends its upload. An upload that is not ended in order leaves
nothing behind: its session is aborted. State is touched by the door's thread only, the session by one worker
at a time. Spec: docs/bus-protocol.md, "Uploads".
"""

from __future__ import annotations

import time
from typing import Literal

from walytis_vault.bus.budget import Budget
from walytis_vault.bus.calls import PublishCall
from walytis_vault.bus.door import Door
from walytis_vault.bus.errors import shield
from walytis_vault.bus.messages import Published, RequestKey
from walytis_vault.bus.peer import Peer
from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.protocol import GONE, LENGTH, PLACE, Credit, Header, Kind, Opened, Pong, decode
from walytis_vault.bus.sealing import TAG_BYTES, Seal, new_key
from walytis_vault.bus.service import PublishSession, VaultService
from walytis_vault.domain.errors import BusyError, ConflictError, MisuseError, TransportError, VaultError

_SMALL_MOST = 256
_JOIN = 32 << 10
"""Data smaller than this is copied behind the piece before it, so that tiny parts cannot pile up."""


Sealed = tuple[int, "bytes | memoryview"]
"""Offset and sealed data."""


class Upload:
    """One content being received."""

    def __init__(self, peer: Peer, call: PublishCall, key: RequestKey) -> None:
        self.peer = peer
        self.id = key.request_id
        self.call = call
        self.key = key
        self.session: PublishSession | None = None
        self.state: Literal["opening", "open", "ending", "committing", "dead"] = "opening"
        self.pieces: list[bytes | bytearray | memoryview | Sealed] = []
        self.seal: Seal | None = None
        self.bulk_key = b""
        self.end: int | None = None
        self.received = 0
        self.written = 0
        self.limit = 0
        self.busy = True
        self.touched = self.data_at = time.monotonic()


class Uploads:
    """All uploads of a node."""

    def __init__(self, door: Door, service: VaultService, effects: FairPool, streams: FairPool, budget: Budget) -> None:
        self._door = door
        self._service = service
        self._effects = effects
        self._pool = streams
        self._budget = budget
        self._uploads: dict[tuple[str, bytes], Upload] = {}
        self._starved: dict[tuple[str, bytes], Upload] = {}
        self._dying: set[Upload] = set()
        self._sealed: dict[bytes, Upload] = {}

    @property
    def open_count(self) -> int:
        """How many are open, of all clients."""
        return len(self._uploads)

    def count(self, name: str) -> int:
        """Uploads that a client key has open, or that a worker still has in hand."""
        return sum(1 for u in [*self._uploads.values(), *self._dying] if u.key.client == name)

    def open(self, peer: Peer, call: PublishCall, key: RequestKey) -> None:
        """Begin an upload. The same request over a new connection takes the place of the old one."""
        name = (key.client, key.request_id)
        old = self._uploads.get(name)
        if old is not None:
            if old.key != key:
                raise ConflictError("this request id is in use for another request: make a new one")
            if old.state in ("committing", "opening"):
                old.peer = peer  # the reply goes to where it was asked for last
                return
            if old.peer is peer and old.received == 0:
                self._announce(old)
                return
            self._kill(old)
        upload = self._uploads[name] = Upload(peer, call, key)
        self._effects.submit(peer.entry.public_key, lambda: self._begin(upload))

    def _begin(self, upload: Upload) -> None:
        if upload.state == "dead":
            self._door.post(lambda: self._let_go(upload))
            return
        with shield(lambda e: self._door.post(lambda: self._failed(upload, e))):
            begun = self._service.begin_publish(upload.call.options, upload.key)
            self._door.post(lambda: self._begun(upload, begun))

    def _begun(self, upload: Upload, begun: PublishSession | Published) -> None:
        if not isinstance(begun, Published):
            upload.session = begun
        if upload.state == "dead":
            self._let_go(upload)
            return
        upload.busy = False
        if isinstance(begun, Published):
            self._reply(upload, begun)
            return
        upload.state = "open"
        size = upload.call.size
        if upload.call.bulk and self._door.has_bulk and (size is None or size >= self._door.limits.bulk_least):
            upload.bulk_key = new_key()
            upload.seal = Seal(upload.bulk_key, upload.id)
            if self._sealed.setdefault(upload.id, upload) is not upload:
                self._fail(upload, MisuseError("this request id is in use: make ids at random"))
                return
        self._grant(upload)
        self._announce(upload)

    def _announce(self, upload: Upload) -> None:
        assert upload.session is not None
        body = Opened(content_id=upload.session.content_id, limit=upload.limit, bulk_key=upload.bulk_key)
        self._door.send(upload.peer, Kind.OPENED, upload.id, body)

    def _grant(self, upload: Upload) -> bool:
        """Take room for more bytes; True if the limit grew."""
        want = upload.written + self._door.limits.upload_window - upload.limit
        got = self._budget.take(upload.peer, want)
        upload.limit += got
        if got < want:
            self._starved[upload.key.client, upload.id] = upload
        return got > 0

    def on_message(self, peer: Peer, message: Header) -> bool:
        """Handle a message if it belongs to an upload; False if there is none of that id."""
        upload = self._uploads.get((peer.entry.name, message.id))
        if upload is None or upload.peer is not peer:
            return False
        upload.touched = time.monotonic()
        try:
            self._handle(upload, message)
        except VaultError as e:
            self._fail(upload, e)
        return True

    def on_bulk(self, message: Header) -> None:
        """DATA on the bulk socket. Only what its seal proves is written; what is changed at its place ends it."""
        upload = self._sealed.get(message.id)
        if upload is None or upload.state != "open":
            return
        upload.touched = time.monotonic()
        try:
            offset = decode(PLACE, message.body).offset
            size = len(message.data) - TAG_BYTES
            if offset != upload.received:
                return  # of an earlier attempt, or of a stranger; whoever sent it in earnest sees that nothing arrives
            self._check_data(upload, offset, size)
            upload.data_at = upload.touched
            if size < _JOIN and len(upload.pieces) > _SMALL_MOST:
                raise BusyError("too many small pieces at once: send larger ones")
            upload.received += size
            upload.pieces.append((offset, message.data))
            if upload.received == upload.end:
                upload.state = "ending"
            self._pump(upload)
        except VaultError as e:
            self._fail(upload, e)

    def _handle(self, upload: Upload, message: Header) -> None:
        kind = message.kind
        if kind is Kind.DATA:
            self._data(upload, decode(PLACE, message.body).offset, message.data)
        elif kind is Kind.END:
            length = decode(LENGTH, message.body).length
            # On the bulk socket the last data may be on its way still.
            if upload.state != "open" or length < upload.received or (length > upload.received and not upload.seal):
                raise TransportError(f"the upload ends at {length} and {upload.received} bytes came: publish again")
            if upload.call.size is not None and upload.call.size != length:
                raise MisuseError(f"{length} bytes came and {upload.call.size} were announced: nothing was published")
            upload.end = length
            if upload.received == length:
                upload.state = "ending"
            self._pump(upload)
        elif kind is Kind.PING:
            self._door.send(upload.peer, Kind.PONG, upload.id, Pong(sent=upload.received, limit=upload.limit))
        elif kind is Kind.CANCEL:
            if upload.state != "committing":
                if not upload.received:
                    self._door.hold_against(upload.peer)
                self._kill(upload)
        else:
            raise MisuseError(f"an upload takes no {kind.name}")

    def _data(self, upload: Upload, offset: int, data: bytes | memoryview) -> None:
        size = len(data)
        self._check_data(upload, offset, size)
        if upload.seal is not None:
            raise MisuseError("the data of this upload goes over the bulk socket")
        upload.data_at = upload.touched
        upload.received += size
        last = upload.pieces[-1] if upload.pieces else None
        if size < _JOIN and isinstance(last, bytearray) and len(last) < self._door.limits.chunk:
            last += data
        else:
            upload.pieces.append(bytearray(data) if size < _JOIN else data)
        self._pump(upload)

    @staticmethod
    def _check_data(upload: Upload, offset: int, size: int) -> None:
        if upload.state != "open" or offset != upload.received:
            raise TransportError(f"data at {offset} where {upload.received} comes next: publish again")
        if size <= 0 or offset + size > upload.limit:
            raise BusyError(f"data beyond the granted {upload.limit} bytes: nothing was published")

    def _pump(self, upload: Upload) -> None:
        if upload.busy or upload.state == "dead":
            return
        if upload.pieces:
            upload.busy = True
            pieces, upload.pieces = upload.pieces, []
            self._pool.submit(upload.peer.entry.public_key, lambda: self._write(upload, pieces))
        elif upload.state == "ending":
            upload.busy = True
            upload.state = "committing"
            self._budget.give(upload.peer, upload.limit - upload.written)
            upload.limit = upload.written
            self._effects.submit(upload.peer.entry.public_key, lambda: self._commit(upload))

    def _write(self, upload: Upload, pieces: list[bytes | bytearray | memoryview | Sealed]) -> None:
        session = upload.session
        assert session is not None
        with shield(lambda e: self._door.post(lambda: self._failed(upload, e))):
            size = 0
            for given in pieces:
                piece = given
                if isinstance(piece, tuple):
                    assert upload.seal is not None
                    piece = upload.seal.open(*piece)
                session.write(memoryview(piece))
                size += len(piece)
            self._door.post(lambda: self._wrote(upload, size))

    def _wrote(self, upload: Upload, size: int) -> None:
        upload.busy = False
        upload.written += size
        if upload.state == "dead":
            self._abort(upload)
            return
        self._budget.give(upload.peer, size)
        if upload.state == "open":
            self._offer(upload)
        self._pump(upload)
        self._feed_starved()

    def _offer(self, upload: Upload) -> None:
        if self._grant(upload):
            body = Credit(received=upload.written, limit=upload.limit)
            self._door.send(upload.peer, Kind.GRANT, upload.id, body)

    def _feed_starved(self) -> None:
        for name, upload in list(self._starved.items()):
            if self._budget.room(upload.peer) > 0:
                self._starved.pop(name, None)
                if upload.state == "open":
                    self._offer(upload)

    def _commit(self, upload: Upload) -> None:
        session = upload.session
        assert session is not None
        with shield(lambda e: self._door.post(lambda: self._failed(upload, e))):
            published = session.commit()
            upload.session = None
            self._door.post(lambda: self._reply(upload, published))

    def _reply(self, upload: Upload, published: Published) -> None:
        upload.busy = False
        self._door.send(upload.peer, Kind.REPLY, upload.id, published)
        self._forget(upload)
        self._dying.discard(upload)

    def _failed(self, upload: Upload, error: VaultError) -> None:
        """The worker met an error, and has let go of the session."""
        upload.busy = False
        if upload.state == "dead":
            self._abort(upload)
        self._fail(upload, error)

    def _fail(self, upload: Upload, error: VaultError) -> None:
        if upload.state != "dead":
            self._door.send_error(upload.peer, upload.id, error)
            self._kill(upload)

    def _let_go(self, upload: Upload) -> None:
        """The worker has let go of one that ended meanwhile."""
        upload.busy = False
        self._abort(upload)

    def _kill(self, upload: Upload) -> None:
        """End it without a result."""
        self._forget(upload)
        if not upload.busy:
            self._abort(upload)

    def _forget(self, upload: Upload) -> None:
        name = (upload.key.client, upload.id)
        if self._uploads.get(name) is upload:
            del self._uploads[name]
        self._starved.pop(name, None)
        if self._sealed.get(upload.id) is upload:
            del self._sealed[upload.id]
        if upload.state != "dead":
            upload.state = "dead"
            self._budget.give(upload.peer, upload.limit - upload.written)
            upload.pieces.clear()
            if upload.busy or upload.session is not None:
                self._dying.add(upload)
        self._feed_starved()

    def _abort(self, upload: Upload) -> None:
        session, upload.session = upload.session, None
        if session is None:
            self._dying.discard(upload)
            return
        self._dying.add(upload)

        def abort() -> None:
            with shield(lambda _: None):
                session.abort()
            self._door.post(lambda: self._dying.discard(upload))

        self._pool.submit(upload.peer.entry.public_key, abort)

    def on_gone(self, peer: Peer) -> None:
        """Abort the uploads of a connection; one that is being committed goes on."""
        for upload in [u for u in self._uploads.values() if u.peer is peer and u.state != "committing"]:
            self._kill(upload)

    def on_tick(self, now: float) -> None:
        """End what is silent, and what sends nothing of what it was granted while others wait for a grant."""
        for upload in list(self._uploads.values()):
            if upload.state != "open" or upload.busy:
                continue
            idle = self._door.limits.idle
            if now - upload.touched > idle or (now - upload.data_at > idle and self._in_the_way(upload)):
                # Whoever is still there, begins again.
                self._door.send(upload.peer, Kind.ERROR, upload.id, GONE)
                self._kill(upload)

    def _in_the_way(self, upload: Upload) -> bool:
        if upload.limit == upload.written:
            return False
        others = (s for s in self._starved.values() if s is not upload)
        return any(s.key.client == upload.key.client or self._budget.full for s in others)

    def close(self) -> None:
        """Abort all sessions; the pools have ended."""
        for upload in [*self._uploads.values(), *self._dying]:
            session, upload.session = upload.session, None
            if session is not None:
                with shield(lambda _: None):
                    session.abort()
        self._uploads.clear()
