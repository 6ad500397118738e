"""One content on its way in: ciphertext and key durable first, then the event on the chain.

Nothing is acknowledged before both. What fails in between is destroyed again, so that no content is kept that
no event speaks of; a crash in between is cleaned up at the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from eventsourcing.persistence import IntegrityError

from walytis_vault import request_codes
from walytis_vault.adapters.crypto.descriptor import Descriptor
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.failures import SyncFailedError
from walytis_vault.adapters.walytis.receipts import Receipt
from walytis_vault.adapters.walytis.recorder import LogRecorder
from walytis_vault.bus.messages import Published, PublishOptions, RequestKey
from walytis_vault.domain import events as ev
from walytis_vault.domain.claims import content_id_of
from walytis_vault.domain.contents import decide_revise
from walytis_vault.domain.errors import (
    ConflictError,
    MisuseError,
    TimedOutError,
    TransportError,
    VaultError,
)
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId, ContentKey, parse_content_id
from walytis_vault.domain.ports import StoredContent
from walytis_vault.reading import read_state

UNDECIDED: Final = (TimedOutError, TransportError, SyncFailedError)
"""After these the event may be recorded: its content must stay."""
ATTEMPTS: Final = 8
"""How often a decision is made again when the log changed under it."""


def check_options(options: PublishOptions) -> None:
    """Hold what the publisher says against the limits, before a byte of content is taken.

    Raises:
        MisuseError: one is too long or malformed; the message says which and what is allowed.
    """
    descriptor_of(options, 0).check()
    if options.media_type is not None and not (options.media_type.isascii() and options.media_type.isprintable()):
        raise MisuseError("a media type is printable ASCII text such as text/plain")
    if options.revises is not None:
        parse_content_id(options.revises)


class Publication:
    """A `PublishSession`. Owned by one thread at a time."""

    def __init__(
        self,
        log: LogRecorder,
        store: DiskContentStore,
        *,
        vault_id: str,
        author: str,
        nonce: bytes,
        options: PublishOptions,
        key: RequestKey | None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to write. Raises StorageError, LockedError, MisuseError, ForgottenError, PermissionRefusedError."""
        check_options(options)
        self._log = log
        self._store = store
        self._author = author
        self._options = options
        self._key = key
        self._ended = ended
        self._stored = False
        self._terms = Terms(nonce=nonce, expires_ms=options.expires_ms)
        if options.revises is not None:
            target = parse_content_id(options.revises)
            state = read_state(log, [target]).state
            original = decide_revise(state, target, by=author)
            expiries = (options.expires_ms, *(state.verdict(c).expires_ms for c in (target, original)))
            earliest = min((e for e in expiries if e is not None), default=None)
            self._terms = Terms(nonce=nonce, revises=original, expires_ms=earliest)
        self._id = self._terms.content_id(vault_id, author)
        self._writer = store.writer(self._id, author=author)

    @property
    def content_id(self) -> str:
        """The id that the content will have, as hex."""
        return self._id.hex()

    def write(self, data: bytes | memoryview) -> None:
        """Add plaintext. Raises StorageError, StorageFullError, MisuseError."""
        self._writer.write(data)

    def commit(self) -> Published:
        """Finish the content, append its event, return when both are durable and the block exists.

        Raises:
            TimedOutError, TransportError: the event is recorded but not on the chain yet; it will get there.
            SyncFailedError: whether it is recorded shows at the next start, which erases the content if it is not.
            VaultError: nothing was published and nothing of it remains.
        """
        try:
            stored = self._writer.finish()
            self._stored = True
            fault("publish.after_content")
            descriptor = self._writer.seal_descriptor(descriptor_of(self._options, stored.length))
            event = event_of(stored, self._terms, descriptor)
            published = self._append(event)
        except UNDECIDED:
            self._ended()
            raise
        except VaultError:
            self.abort()
            raise
        self._ended()
        fault("publish.after_event")
        return published

    def _append(self, event: ev.ContentPublished) -> Published:
        receipt = receipt_of(self._id, self._writer.key, self._key, self._store)
        for _ in range(ATTEMPTS):
            condition = None
            if self._options.revises is not None:
                target = parse_content_id(self._options.revises)
                reading = read_state(self._log, [target])
                if decide_revise(reading.state, target, by=self._author) != event.revises:
                    raise ConflictError("what this revises became a revision itself: repeat the request")
                condition = reading.condition
            try:
                done = self._log.append_once([ev.to_dcb(event)], condition, receipt=receipt)
            except IntegrityError:
                continue
            if done.repeated:
                # The same request got here twice: the first one counts, this copy goes.
                self.abort()
                assert done.reply is not None
                return msgspec.msgpack.decode(done.reply, type=Published)
            return Published(content_id=self._id.hex(), position=done.last)
        raise ConflictError("the content that this revises is changing too quickly: repeat the request")

    def abort(self) -> None:
        """Drop everything that was written, key included. Idempotent."""
        if self._stored:
            self._stored = False
            self._store.erase((self._id,))
        else:
            self._writer.abort()
        self._ended()


def descriptor_of(options: PublishOptions, length: int) -> Descriptor:
    """What is sealed about a content."""
    return Descriptor(
        name=options.name, media_type=options.media_type, labels=options.labels, length=length, note=options.note
    )


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a content's id commits to, besides vault and author."""

    nonce: bytes
    revises: bytes | None = None
    expires_ms: int | None = None

    def content_id(self, vault_id: str, author: str) -> ContentId:
        """The id."""
        return content_id_of(vault_id, author, self.nonce, revises=self.revises, expires_ms=self.expires_ms)


def event_of(stored: StoredContent, terms: Terms, descriptor: bytes) -> ev.ContentPublished:
    """The event that publishes a stored content under the id that its terms give."""
    return ev.ContentPublished(
        content_id=stored.content_id,
        nonce=terms.nonce,
        root=stored.root,
        padded_length=stored.padded_length,
        header=stored.header,
        descriptor=descriptor,
        revises=terms.revises,
        expires_ms=terms.expires_ms,
    )


def receipt_of(
    content_id: ContentId, content_key: ContentKey, key: RequestKey | None, keys: request_codes.Keys
) -> Receipt | None:
    """Makes the publish happen once, if it has a request key."""
    if key is None:
        return None
    return Receipt(
        client=key.client,
        request_id=key.request_id,
        kept=request_codes.keep(key, content_id, content_key),
        is_same=lambda kept: request_codes.is_same(key, kept, keys),
        make_reply=lambda _first, last: msgspec.msgpack.encode(Published(content_id=content_id.hex(), position=last)),
    )


def position_receipt(
    key: RequestKey, keys: request_codes.Keys | None = None, about: ContentId | None = None
) -> Receipt:
    """A receipt whose reply is the last position.

    Args:
        keys: None for a request that has nothing sealed.
        about: the content under whose key the rest is sealed.
    """
    content_key = keys.content_key(about) if keys and about and key.sealed else None
    return Receipt(
        client=key.client,
        request_id=key.request_id,
        kept=request_codes.keep(key, about, content_key),
        is_same=lambda kept: request_codes.is_same(key, kept, keys),
        make_reply=lambda _first, last: msgspec.msgpack.encode(last),
    )


def check_expiry(expires_ms: int | None, now_ms: int) -> None:
    """Refuse an expiry that lies in the past. Raises MisuseError."""
    if expires_ms is not None and expires_ms <= now_ms:
        raise MisuseError("the content would expire before it is published: choose a later time")
