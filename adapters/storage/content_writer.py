"""A content on its way into the store: padded, encrypted and hashed while it streams.

Small contents wait in memory and share a pack; large ones stream into a temporary blob file while a helper
thread hashes and writes. Holds at most about 3 MiB. Implements `domain.ports.ContentWriter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from walytis_vault.adapters.crypto.ciphertext_root import LeafHasher
from walytis_vault.adapters.crypto.content_cipher import (
    CONTENT_KEY_BYTES,
    HEADER_BYTES,
    ContentEncryptor,
    content_context,
    padded_length,
)
from walytis_vault.adapters.crypto.descriptor import Descriptor, seal_descriptor
from walytis_vault.adapters.storage.blob_sink import BlobSink
from walytis_vault.adapters.storage.committer import Arrival, GroupCommitter
from walytis_vault.adapters.storage.index import NOWHERE
from walytis_vault.adapters.storage.replica import forgotten
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import ConflictError, MisuseError, StorageError, VaultError
from walytis_vault.domain.ids import ContentId, ContentKey, Root
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.ports import StoredContent

SMALL_BYTES: Final = 64 << 10
"""Padded plaintext up to which a content goes into a pack."""
PIECE_BYTES: Final = 1 << 20
"""Plaintext that is encrypted in one call."""
_ZEROS: Final = bytes(PIECE_BYTES)


class DiskContentWriter:
    """See `domain.ports.ContentWriter`."""

    def __init__(self, state: StoreState, committer: GroupCommitter, content_id: ContentId, author: str) -> None:
        """Begin with a fresh key. Raises StorageError."""
        state.check_writable()
        state.check_room()
        self._state = state
        self._committer = committer
        self._content_id = content_id
        key = ContentKey(state.randomness.token(CONTENT_KEY_BYTES))
        context = content_context(state.vault_id, author, content_id)
        self._secrets: tuple[ContentKey, ContentEncryptor] | None = (key, ContentEncryptor(key, context))
        self._buffer = bytearray()
        self._length = 0
        self._sink: BlobSink | None = None
        self._ended: VaultError | None = None
        self._finished = False
        state.register(content_id, self)

    @property
    def key(self) -> ContentKey:
        """The content's key."""
        return self._opened()[0]

    def write(self, data: bytes | memoryview) -> None:
        """Add plaintext. Raises StorageError, StorageFullError, MisuseError (over the size limit)."""
        self._check()
        view = memoryview(data).cast("B")
        if self._length + len(view) > LIMITS.content:
            self.abort()
            raise MisuseError(f"a content has at most {LIMITS.content} bytes")
        self._length += len(view)
        try:
            self._take(view)
            self._check()  # cut off meanwhile, it must not keep what it took since
        except BaseException as e:
            raise self._given_up(e) from e.__cause__

    def finish(self) -> StoredContent:
        """Pad, encrypt the rest, make bytes and key durable.

        Raises:
            StorageFullError, StorageError: nothing remains of the content.
            ForgottenError: it was forgotten meanwhile.
        """
        self._check()
        try:
            stored = self._finish()
        except BaseException as e:
            raise self._given_up(e) from e.__cause__
        self._finished = True
        self._end(MisuseError("this content is finished"))
        return stored

    def seal_descriptor(self, descriptor: Descriptor) -> bytes:
        """Seal under this content's key, without a look-up. Raises MisuseError over the limits."""
        return seal_descriptor(self._opened()[0], self._content_id, descriptor)

    def abort(self) -> None:
        """Drop everything that was written, key included. Idempotent."""
        if not self._finished:
            self.cut_off(MisuseError("this content was aborted"))

    def cut_off(self, reason: VaultError) -> None:
        """Drop everything, key included; later calls raise the reason. Any thread."""
        self._end(reason)
        self._secrets = None
        sink = self._sink  # the thread that writes may hand it over meanwhile
        if sink is not None:
            sink.abort()

    def _given_up(self, error: BaseException) -> BaseException:
        """Drop everything; returns what to raise: why we were cut off, if we were."""
        reason = self._ended or error
        self.abort()
        return reason

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _opened(self) -> tuple[ContentKey, ContentEncryptor]:
        secrets = self._secrets
        if secrets is None:
            raise self._ended or MisuseError("this content has ended")
        return secrets

    def _end(self, reason: VaultError) -> None:
        # In this order: who finds the buffer empty because of us sees why when it looks.
        self._ended = self._ended or reason
        self._buffer = bytearray()
        self._state.unregister(self._content_id, self)

    def _take(self, view: memoryview) -> None:
        if self._sink is None:
            if len(self._buffer) + len(view) <= SMALL_BYTES:
                self._buffer += view
                return
            self._open_sink()
        while len(view):
            if not self._buffer and len(view) >= PIECE_BYTES:
                self._put(view[:PIECE_BYTES])
                view = view[PIECE_BYTES:]
                continue
            room = PIECE_BYTES - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == PIECE_BYTES:
                self._flush()

    def _open_sink(self) -> BlobSink:
        # Small contents are looked up by the group commit, many at once; a file must not meet one that exists.
        ((row, gone),) = self._state.index.look_up([self._content_id])
        if gone:
            raise forgotten(self._content_id)
        if row is not None and row.place != NOWHERE:
            raise ConflictError(f"content {self._content_id.hex()} is stored already")
        sink = self._sink = BlobSink(self._state, self._content_id)
        if self._ended is not None:
            # Whoever cut us off may not have seen it.
            sink.abort()
            raise self._ended
        return sink

    def _put(self, data: bytearray | memoryview) -> None:
        assert self._sink is not None
        self._sink.put(self._opened()[1].update(data))

    def _flush(self) -> None:
        if self._buffer:
            self._put(self._buffer)
            self._buffer = bytearray()

    def _prepare(self) -> Arrival | StoredContent:
        """For `finish_together`: what is to be made durable, or all of `finish` for a large content."""
        self._check()
        padded = padded_length(self._length)
        if self._sink is not None or padded > SMALL_BYTES:
            return self.finish()
        try:
            return self._seal_small(padded)
        except BaseException as e:
            raise self._given_up(e) from e.__cause__

    def _settle(self, arrival: Arrival) -> StoredContent | VaultError:
        """For `finish_together`: the arrival is durable, or failed."""
        error = arrival.error
        if error is not None:
            self.abort()
            return error if isinstance(error, VaultError) else StorageError(f"the content was not stored: {error!r}")
        self._finished = True
        self._end(MisuseError("this content is finished"))
        return self._stored_small(arrival)

    def _finish(self) -> StoredContent:
        padded = padded_length(self._length)
        missing = padded - self._length
        if self._sink is None and padded <= SMALL_BYTES:
            arrival = self._seal_small(padded)
            self._committer.commit(arrival)
            return self._stored_small(arrival)
        sink = self._sink or self._open_sink()
        self._flush()
        self._check()
        for start in range(0, missing, PIECE_BYTES):
            self._put(memoryview(_ZEROS)[: min(PIECE_BYTES, missing - start)])
        key, cipher = self._opened()
        sink.put(cipher.finish())
        header, root, length = sink.finish()
        # From here on the file is the store's, under its lock: a cut-off must not take it from under a row.
        self._sink = None
        arrival = Arrival(content_id=self._content_id, key=key, in_blob=True, ciphertext_length=length, root=root)
        try:
            self._committer.commit(arrival)
        except BaseException:
            sink.abort()
            raise
        return self._stored(root, header, padded, length)

    def _seal_small(self, padded: int) -> Arrival:
        buffer = self._buffer
        self._check()
        key, cipher = self._opened()
        buffer += bytes(padded - self._length)
        ciphertext = cipher.update(buffer) + cipher.finish()
        hasher = LeafHasher()
        hasher.update(ciphertext)
        _, root = hasher.finish()
        return Arrival(
            content_id=self._content_id,
            key=key,
            ciphertext=ciphertext,
            ciphertext_length=len(ciphertext),
            root=root,
        )

    def _stored_small(self, arrival: Arrival) -> StoredContent:
        assert arrival.ciphertext is not None
        assert arrival.root is not None
        header = arrival.ciphertext[:HEADER_BYTES]
        return self._stored(arrival.root, header, padded_length(self._length), len(arrival.ciphertext))

    def _stored(self, root: Root, header: bytes, padded: int, ciphertext_length: int) -> StoredContent:
        return StoredContent(
            content_id=self._content_id,
            root=root,
            header=header,
            padded_length=padded,
            length=self._length,
            ciphertext_length=ciphertext_length,
        )


def finish_together(
    committer: GroupCommitter, writers: Sequence[DiskContentWriter]
) -> list[StoredContent | VaultError]:
    """Finish many contents with one wait for the disk: for each, in order, what `finish` returns or raises.

    Of a content with an error nothing remains. Contents too large for a pack are finished one by one.
    """
    arrivals: list[Arrival | StoredContent | VaultError] = []
    for writer in writers:
        try:
            arrivals.append(writer._prepare())
        except VaultError as e:
            arrivals.append(e)
    try:
        committer.commit_all([a for a in arrivals if isinstance(a, Arrival)])
    except VaultError as e:
        arrivals = [e if isinstance(a, Arrival) else a for a in arrivals]
    return [
        writer._settle(found) if isinstance(found, Arrival) else found
        for writer, found in zip(writers, arrivals, strict=True)
    ]
