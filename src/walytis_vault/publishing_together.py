"""Many small contents on their way in together: one wait for the disk and one for the chain for all of them.

The promises are those of `publishing`, for each content by itself: acknowledged when content and event are
durable and on the chain, and nothing remains of what failed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import msgspec
from eventsourcing.dcb.api import DCBEvent

from walytis_vault import request_codes
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.content_writer import DiskContentWriter
from walytis_vault.adapters.walytis.receipts import Appended, Receipt
from walytis_vault.adapters.walytis.recorder import LogRecorder
from walytis_vault.adapters.walytis.vault_log import VaultLog, not_yet
from walytis_vault.bus.messages import InlinePublish, Published, RequestKey
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import StorageError, VaultError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ID_BYTES, ContentId
from walytis_vault.domain.ports import Clock, Randomness
from walytis_vault.publishing import UNDECIDED, Terms, check_expiry, check_options, descriptor_of, event_of, receipt_of

_log = logging.getLogger(__name__)


def publish_together(
    log: VaultLog,
    store: DiskContentStore,
    wanted: Sequence[InlinePublish],
    *,
    vault_id: str,
    author: str,
    clock: Clock,
    randomness: Randomness,
) -> list[Published | VaultError]:
    """Publish many small contents that revise nothing: one wait for the disk and one for the chain for all of them.

    Returns for each, in order, the receipt or the error: what `Publication` would give; one does not hold up another.
    """
    keys = [(k.client, k.request_id, partial(_is_same, k, store)) for w in wanted if (k := w.key) is not None]
    kept = iter(log.index.kept_replies(keys, clock.wall_ms()))
    results = _visible(log, [None if w.key is None else _reply_of(next(kept)) for w in wanted])
    fresh = [number for number, found in enumerate(results) if found is None]
    contents = []
    for number in fresh:
        terms = Terms(nonce=randomness.token(ID_BYTES), expires_ms=wanted[number].options.expires_ms)
        contents.append((terms.content_id(vault_id, author), terms, wanted[number]))
    made = _publish_fresh(log.recorder, store, contents, author=author, now_ms=clock.wall_ms())
    for number, result in zip(fresh, made, strict=True):
        results[number] = result
    return [r for r in results if r is not None]


def _is_same(key: RequestKey, store: DiskContentStore, kept: bytes) -> bool:
    return request_codes.is_same(key, kept, store)


def _reply_of(reply: bytes | VaultError | None) -> Published | VaultError | None:
    return msgspec.msgpack.decode(reply, type=Published) if isinstance(reply, bytes) else reply


def _visible(log: VaultLog, found: list[Published | VaultError | None]) -> list[Published | VaultError | None]:
    """A crash may have come between the kept reply and the block: who asks again is answered when that exists."""
    last = max((r.position for r in found if isinstance(r, Published)), default=0)
    seen = log.seen(last)
    return [not_yet() if isinstance(r, Published) and r.position > seen else r for r in found]


def _publish_fresh(
    log: LogRecorder,
    store: DiskContentStore,
    wanted: Sequence[tuple[ContentId, Terms, InlinePublish]],
    *,
    author: str,
    now_ms: int,
) -> list[Published | VaultError]:
    results: list[Published | VaultError | None] = [None] * len(wanted)
    writers: list[tuple[int, DiskContentWriter]] = []
    for number, (content_id, _, inline) in enumerate(wanted):
        try:
            check_expiry(inline.options.expires_ms, now_ms)
            check_options(inline.options)
            writer = store.writer(content_id, author=author)
            writer.write(inline.data)
            writers.append((number, writer))
        except VaultError as e:
            results[number] = e
    stored: list[int] = []
    unwanted: list[ContentId] = []
    appends: list[tuple[Sequence[DCBEvent], Receipt | None]] = []
    for (number, writer), found in zip(writers, store.finish_together([w for _, w in writers]), strict=True):
        if isinstance(found, VaultError):
            results[number] = found
            continue
        content_id, terms, inline = wanted[number]
        try:
            event = event_of(found, terms, writer.seal_descriptor(descriptor_of(inline.options, found.length)))
        except VaultError as e:
            results[number] = e
            unwanted.append(content_id)
            continue
        stored.append(number)
        appends.append(([ev.to_dcb(event)], receipt_of(content_id, writer.key, inline.key, store)))
    fault("publish.after_content")
    try:
        appended = log.append_all(appends)
    except VaultError as e:
        appended = [e] * len(appends)
    for number, done in zip(stored, appended, strict=True):
        content_id = wanted[number][0]
        if isinstance(done, Appended) and not done.repeated:
            results[number] = Published(content_id=content_id.hex(), position=done.last)
            continue
        if not isinstance(done, UNDECIDED):
            unwanted.append(content_id)  # no event speaks of it: the same request got here twice, or it failed
        if isinstance(done, Appended):
            assert done.reply is not None
            results[number] = msgspec.msgpack.decode(done.reply, type=Published)
        elif isinstance(done, VaultError):
            results[number] = done
        else:
            results[number] = StorageError(f"the log could not be written: {type(done).__name__}: {done}")
    if unwanted:
        try:
            store.erase(tuple(unwanted))
        except StorageError:
            # The others are published all the same; what no event speaks of is erased at the next start.
            _log.exception("contents that were not published could not be erased yet")
    fault("publish.after_event")
    return [r if r is not None else StorageError("a publish was lost in the node: repeat it") for r in results]
