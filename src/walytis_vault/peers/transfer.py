"""One content on its way here: who holds it, its key sealed for one request, its ciphertext in checked segments.

Asks the publisher's device first, and everybody when that does not answer at once; takes segments from several
holders in parallel; goes on where an earlier attempt ended. Refuses what was forgotten, whatever peers say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from typing import Final

import msgspec

from walytis_vault.adapters.crypto.ciphertext_root import LEAF_BYTES, segment_count, split_leaves
from walytis_vault.adapters.crypto.content_cipher import ContentDecryptor, ciphertext_length, content_context
from walytis_vault.adapters.exchange.key_transfer import NONCE_BYTES, OpenRequest
from walytis_vault.adapters.storage.ciphertext_writer import CiphertextWriter
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Publication
from walytis_vault.domain.errors import (
    ConflictError,
    DamagedContentError,
    ForgottenError,
    NotYetAvailableError,
    TransportError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId, Root
from walytis_vault.domain.limits import SEGMENT_BYTES
from walytis_vault.domain.ports import Clock, Signer
from walytis_vault.peers import protocol as p
from walytis_vault.peers.delivery import Delivery
from walytis_vault.peers.link import PeerLink, Replied, settle
from walytis_vault.peers.network import PeerNetwork
from walytis_vault.peers.sources import open_source
from walytis_vault.reading import read_state

ASK_S: Final = 5.0
HEDGE_S: Final = 0.3
"""How long the publisher alone is waited for before all are asked; and, once one is found, for the others."""
WINDOW: Final = 8
"""Segments that one holder is asked for ahead (a count, 1 MiB each)."""
HOLDERS: Final = 4
"""Holders that deliver one content at once (a count)."""

_log = logging.getLogger(__name__)
Holder = tuple[DeviceKeys, PeerLink]
Opened = Callable[[CiphertextWriter], None]
_LESS = (TransportError, NotYetAvailableError, UntrustedInputError, DamagedContentError, ForgottenError)
"""What one holder may answer without holding up the others."""


class HoldersLostError(NotYetAvailableError):
    """All who held it went away while it came: what is here stays, and the rest is fetched when one is back."""


class Transfers:
    """Fetches one content at a time for each calling thread."""

    def __init__(
        self,
        log: VaultLog,
        store: DiskContentStore,
        network: PeerNetwork,
        signer: Signer,
        *,
        vault_id: str,
        device: str,
        clock: Clock,
    ) -> None:
        """Bind the parts together."""
        self._log, self._store, self._network, self._signer = log, store, network, signer
        self._vault_id, self._device, self._clock = vault_id, device, clock
        self._closing = False
        self._lock = threading.Lock()
        self.received = 0
        """Bytes of segments that came since the start, verified or not."""

    def close(self) -> None:
        """Let transfers under way end soon."""
        self._closing = True

    def fetch(self, content_id: ContentId, opened: Opened = lambda _writer: None) -> None:
        """Bring bytes and key of a content here; return when they are durable.

        Args:
            opened: told of the writer once the key is here and segments begin to come; not for the smallest.
        Raises:
            ForgottenError: it was forgotten, retracted or has expired.
            NotYetAvailableError: nobody who is connected holds it. HoldersLostError: they went away meanwhile.
            UntrustedInputError, TransportError, StorageError.
        """
        reading = read_state(self._log.recorder, [content_id])
        verdict = reading.state.verdict(content_id)
        if verdict.forgetting == "carried" or self._store.erased(content_id):
            raise ForgottenError(f"content {content_id.hex()} was forgotten; only its record remains")
        if verdict.retracted or (verdict.expires_ms is not None and verdict.expires_ms <= self._clock.wall_ms()):
            raise ForgottenError(f"content {content_id.hex()} was retracted or has expired; it is not fetched")
        publication, event = reading.state.publications[content_id], reading.published[content_id]
        if self._store.has_bytes(content_id) and self._store.content_key(content_id) is not None:
            return
        holders = self._network.links()
        if not holders:
            raise NotYetAvailableError("no other member's node is connected now: the content is fetched later")
        holders.sort(key=lambda holder: (holder[0].device != publication.device, holder[0].device))
        while True:
            first, found = self._find(content_id, publication, event, holders)
            try:
                if not self._store.has_bytes(content_id):
                    self._take_bytes(content_id, publication, first, found, opened)
                return
            except HoldersLostError:
                # Who says "here" may be lying: then those who were not asked, or not waited for, have a turn.
                tried = {keys.device for keys, _ in found}
                holders = [holder for holder in holders if holder[0].device not in tried]
                if not holders:
                    raise

    # -- who holds it, and the key ------------------------------------------------------------------------------

    def _find(
        self, content_id: ContentId, publication: Publication, event: ev.ContentPublished, holders: Sequence[Holder]
    ) -> tuple[bytes, list[Holder]]:
        """Who holds it; the key is taken from the first who gives a right one. Returns the first segment too."""
        first, found, states = b"", list[Holder](), list[str]()
        several = segment_count(ciphertext_length(publication.padded_length)) > 1
        asked: dict[Future[Replied], tuple[Holder, OpenRequest | None]] = {}

        def ask(whom: Sequence[Holder]) -> None:
            for holder in whom:
                request, future = self._ask(content_id, holder, first=not asked)
                asked[future] = (holder, request)

        # The publisher is nearly always the one; the others are asked when that is not enough.
        ask(holders if several else holders[:1])
        while asked:
            everybody = several or len(states) or len(holders) == 1
            done, _ = wait_for(asked, timeout=HEDGE_S if found or not everybody else None, return_when=FIRST_COMPLETED)
            if not done and found:
                break
            if not done and not everybody:
                states.append("late")
                ask(holders[1:])
            for future in done:
                holder, request = asked.pop(future)
                try:
                    reply, payload = settle(future, ASK_S)
                    if not isinstance(reply, p.Fetched):
                        raise UntrustedInputError("a peer's reply does not fit the request")
                    states.append(reply.state)
                    if reply.state != "here":
                        continue
                    if self._store.content_key(content_id) is None:
                        self._take_key(content_id, publication, event, request, reply.sealed_key)
                    found.append(holder)
                    first = first or (payload[0] if payload else b"")
                except _LESS as e:
                    self._store.check_not_gone(content_id)
                    states.append("silent")
                    _log.info("content %s from %s: %s", content_id.hex(), holder[0].device, e)
            if found and not several:
                break
            if done and not found and not everybody:
                ask(holders[1:])
        if not found:
            gone = f", {states.count('gone')} have forgotten it" if "gone" in states else ""
            raise NotYetAvailableError(
                f"none of the {len(holders)} connected nodes holds content {content_id.hex()} now{gone}"
            )
        return first, found

    def _ask(self, content_id: ContentId, holder: Holder, *, first: bool) -> tuple[OpenRequest | None, Future[Replied]]:
        keys, link = holder
        request = None
        ask = p.Fetch(content_id=content_id, first=first)
        if self._store.content_key(content_id) is None:
            request = OpenRequest(
                self._signer,
                vault_id=self._vault_id,
                content_id=content_id,
                asker=self._device,
                holder=keys.device,
                nonce=os.urandom(NONCE_BYTES),
            )
            wire = request.wire
            ask = msgspec.structs.replace(ask, nonce=wire.nonce, public=wire.public, signature=wire.signature)
        return request, link.send(ask, timeout=ASK_S)

    def _take_key(
        self,
        content_id: ContentId,
        publication: Publication,
        event: ev.ContentPublished,
        request: OpenRequest | None,
        sealed: bytes,
    ) -> None:
        """Open the key, hold it against the commitment on the log, keep it."""
        if request is None:
            raise UntrustedInputError("a peer sent a content key that nobody asked for")
        key = request.open(sealed)
        context = content_context(self._vault_id, publication.author, content_id)
        ContentDecryptor(key, context).update(event.header)  # refuses any key but the committed one
        self._store.put_key(content_id, key)
        fault("fetch.after_key")

    # -- bytes --------------------------------------------------------------------------------------------------

    def _take_bytes(
        self,
        content_id: ContentId,
        publication: Publication,
        first: bytes,
        holders: Sequence[Holder],
        opened: Opened,
    ) -> None:
        length = ciphertext_length(publication.padded_length)
        try:
            writer = self._store.begin_ciphertext(content_id, Root(publication.root), length)
        except ConflictError:
            return  # it came another way
        try:
            self._take_leaves(writer, content_id, length, holders)
            if first and 0 in writer.missing():
                with contextlib.suppress(UntrustedInputError):  # a wrong one is asked for again, of everybody
                    writer.write_segment(0, first)
            missing = writer.missing()
            if missing:
                opened(writer)
                self._take_segments(writer, content_id, length, missing, holders)
            fault("fetch.before_finish")
            try:
                writer.finish()
            except ConflictError:
                if not self._store.has_bytes(content_id):
                    raise  # else it came another way meanwhile
        finally:
            writer.close()

    def _take_leaves(
        self, writer: CiphertextWriter, content_id: ContentId, length: int, holders: Sequence[Holder]
    ) -> None:
        for keys, link in holders:
            if writer.has_leaves:
                return
            try:
                joined, count = b"", segment_count(length)
                for start in range(0, count, p.LEAVES_AT_ONCE):
                    _, payload = link.ask(p.Leaves(content_id=content_id, start=start), timeout=ASK_S)
                    # Whole pages only: a list that drips in hash by hash would take for ever.
                    if [len(part) for part in payload] != [min(p.LEAVES_AT_ONCE, count - start) * LEAF_BYTES]:
                        raise UntrustedInputError("a peer's list of hashes is malformed")
                    joined += payload[0]
                writer.set_leaves(split_leaves(joined))
            except _LESS as e:
                self._store.check_not_gone(content_id)
                _log.info("hashes of %s from %s: %s", content_id.hex(), keys.device, e)
        if not writer.has_leaves:
            raise _lost(content_id)

    def _take_segments(
        self,
        writer: CiphertextWriter,
        content_id: ContentId,
        length: int,
        missing: Sequence[int],
        holders: Sequence[Holder],
    ) -> None:
        """Several holders, each from what is left; who does not deliver is not waited for."""
        delivery = Delivery(missing)
        errors: list[BaseException] = []
        closers: list[Callable[[], None]] = []

        def bring(holder: Holder) -> None:
            try:
                self._bring(writer, content_id, length, len(missing), delivery, holder, closers)
            except BaseException as e:  # told by the thread that waits
                errors.append(e)
                delivery.stop()
            finally:
                delivery.gave_up(holder[0].device)

        for keys, _ in holders[:HOLDERS]:
            delivery.begin(keys.device)
        for holder in holders[:HOLDERS]:
            threading.Thread(target=bring, args=(holder,), name="fetch-from", daemon=True).start()
        complete = delivery.wait()
        delivery.stop()
        for close in list(closers):
            close()
        self._store.check_not_gone(content_id)
        if errors:
            raise errors[0]
        if not complete:
            raise _lost(content_id)

    def _bring(
        self,
        writer: CiphertextWriter,
        content_id: ContentId,
        length: int,
        wanted: int,
        delivery: Delivery,
        holder: Holder,
        closers: list[Callable[[], None]],
    ) -> None:
        """One holder's part. What it does not bring is left for the others."""
        keys, link = holder
        try:
            source = open_source(self._network, keys, link, content_id, wanted)
            closers.append(source.close)
            try:
                asked: deque[int] = deque()
                while not self._closing:
                    while len(asked) < WINDOW:
                        number = delivery.claim(keys.device, wait=not asked)
                        if number is None:
                            break
                        source.ask(number)
                        asked.append(number)
                    if not asked:
                        return
                    number = asked.popleft()
                    segment = source.take(min(SEGMENT_BYTES, length - number * SEGMENT_BYTES))
                    with self._lock:
                        self.received += len(segment)
                    writer.write_segment(number, segment)
                    delivery.brought(number)
            finally:
                source.close()
        except _LESS as e:
            _log.info("segments of %s from %s: %s", content_id.hex(), keys.device, e)


def _lost(content_id: ContentId) -> VaultError:
    return HoldersLostError(f"the holders of content {content_id.hex()} went away: it goes on when one is back")
