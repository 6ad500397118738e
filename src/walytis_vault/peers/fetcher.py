"""Brings contents from other members' nodes: ciphertext in checked segments, the key sealed for one request.

Asks the publisher's device first, then everybody; takes segments from several holders at once; goes on where an
earlier attempt ended. "Gone" is an answer, a content that nobody has holds up nothing, and what was forgotten is
never fetched.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Final, Literal

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem

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
    TimedOutError,
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
from walytis_vault.peers.link import PeerLink, Replied, settle
from walytis_vault.peers.network import PeerNetwork
from walytis_vault.reading import read_state

Policy = Literal["all", "small", "on-request"]
SMALL: Final = 1 << 20
"""Padded bytes up to which `small` fetches eagerly."""
ASK_S: Final = 5.0
SEGMENT_S: Final = 15.0
WINDOW: Final = 8
"""Segments that one holder is asked for ahead (a count, 1 MiB each)."""
HOLDERS: Final = 4
"""Holders that deliver one content at once (a count)."""
DEMAND_WORKERS: Final = 8
EAGER_WORKERS: Final = 2
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 300.0
PAGE: Final = 500

_log = logging.getLogger(__name__)
Holder = tuple[DeviceKeys, PeerLink]


class _Wish(msgspec.Struct):
    """A content that is to be fetched eagerly."""

    next_try: float = 0.0
    failures: int = 0


class Fetcher:
    """One for each node. `fetch` may be called from any thread."""

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
        policy: Policy,
    ) -> None:
        """Nothing is fetched by itself before `start`."""
        self._log, self._store, self._network, self._signer = log, store, network, signer
        self._vault_id, self._device, self._clock, self._policy = vault_id, device, clock, policy
        self._lock = threading.Lock()
        self._running: dict[ContentId, Future[None]] = {}
        self._demand = ThreadPoolExecutor(DEMAND_WORKERS, thread_name_prefix="fetch")
        self._eager = ThreadPoolExecutor(EAGER_WORKERS, thread_name_prefix="fetch-eager")
        self._wishes: dict[ContentId, _Wish] = {}
        self._looked_at = 0
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="fetcher", daemon=True)

    def start(self) -> None:
        """Fetch what the policy wants, now and from now on."""
        if self._policy != "on-request":
            self._log.index.listen(self._wake)
            self._network.on_greeted(self._hopeful)
            self._wake.set()
            self._thread.start()

    def close(self) -> None:
        """Stop after the segments under way. Bounded."""
        self._closing = True
        self._log.index.unlisten(self._wake)
        self._wake.set()
        self._demand.shutdown(wait=False, cancel_futures=True)
        self._eager.shutdown(wait=False, cancel_futures=True)
        if self._thread.ident is not None:
            self._thread.join(1.0)

    @property
    def wanted(self) -> int:
        """How many contents are still to be fetched eagerly."""
        return len(self._wishes)

    def fetch(self, content_id: ContentId, *, timeout: float) -> None:
        """Bring bytes and key of a content here; return when they are durable. It goes on after a timeout.

        Raises:
            ForgottenError: it was forgotten. NotYetAvailableError: nobody who is connected holds it.
            TimedOutError: it is still under way. StorageError.
        """
        future = self._begin(content_id, self._demand)
        try:
            future.result(timeout)
        except FutureTimeoutError as e:
            raise TimedOutError(f"content {content_id.hex()} is still being fetched: repeat the request") from e

    def _begin(self, content_id: ContentId, pool: ThreadPoolExecutor) -> Future[None]:
        """The fetch that is under way, or a new one."""
        with self._lock:
            future = self._running.get(content_id)
            if future is not None and (pool is self._eager or future.running() or future.done()):
                return future
            if self._closing:
                raise TransportError("the node is closing: repeat the request when it is back")
            future = self._running[content_id] = pool.submit(self._fetch, content_id)
        future.add_done_callback(lambda done: self._ended(content_id, done))
        return future

    def _ended(self, content_id: ContentId, done: Future[None]) -> None:
        with self._lock:
            if self._running.get(content_id) is done:
                del self._running[content_id]

    # -- one content --------------------------------------------------------------------------------------------

    def _fetch(self, content_id: ContentId) -> None:
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
        first, found = self._find(content_id, publication, event, holders)
        if not self._store.has_bytes(content_id):
            self._take_bytes(content_id, publication, first, found)

    def _find(
        self, content_id: ContentId, publication: Publication, event: ev.ContentPublished, holders: Sequence[Holder]
    ) -> tuple[bytes, list[Holder]]:
        """Who holds it; the key is taken from the first who gives a right one. Returns the first segment too."""
        first, found, states = b"", list[Holder](), list[str]()
        large = ciphertext_length(publication.padded_length) > SEGMENT_BYTES
        # The publisher is nearly always the one; the others are asked when that is not enough.
        for group in (holders[:1], holders[1:]):
            if found and not large:
                break
            asked = [(holder, *self._ask(content_id, holder, first=not found)) for holder in group]
            for holder, request, future in asked:
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
                except (TransportError, NotYetAvailableError, UntrustedInputError, DamagedContentError) as e:
                    _log.info("content %s from %s: %s", content_id.hex(), holder[0].device, e)
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
        self, content_id: ContentId, publication: Publication, first: bytes, holders: Sequence[Holder]
    ) -> None:
        length = ciphertext_length(publication.padded_length)
        try:
            writer = self._store.begin_ciphertext(content_id, Root(publication.root), length)
        except ConflictError:
            return  # it came another way
        try:
            self._take_leaves(writer, content_id, length, holders)
            if first and 0 in writer.missing():
                writer.write_segment(0, first)
            left = deque(writer.missing())
            if left:
                self._take_segments(writer, content_id, left, holders)
            fault("fetch.before_finish")
            writer.finish()
        finally:
            writer.close()

    def _take_leaves(
        self, writer: CiphertextWriter, content_id: ContentId, length: int, holders: Sequence[Holder]
    ) -> None:
        for keys, link in holders:
            if writer.has_leaves:
                return
            try:
                joined = b""
                while len(joined) < segment_count(length) * LEAF_BYTES:
                    start = len(joined) // LEAF_BYTES
                    _, payload = link.ask(p.Leaves(content_id=content_id, start=start), timeout=ASK_S)
                    if len(payload) != 1 or not payload[0] or len(payload[0]) % LEAF_BYTES:
                        raise UntrustedInputError("a peer's list of hashes is malformed")
                    joined += payload[0]
                writer.set_leaves(split_leaves(joined))
            except (TransportError, NotYetAvailableError, UntrustedInputError, ForgottenError) as e:
                self._store.check_not_gone(content_id)
                _log.info("hashes of %s from %s: %s", content_id.hex(), keys.device, e)
        if not writer.has_leaves:
            raise NotYetAvailableError(f"the holders of content {content_id.hex()} went away: it is tried again")

    def _take_segments(
        self, writer: CiphertextWriter, content_id: ContentId, left: deque[int], holders: Sequence[Holder]
    ) -> None:
        """Several holders, each from what is left; what one does not deliver goes back for the others."""
        errors: list[BaseException] = []

        def deliver(holder: Holder) -> None:
            try:
                self._deliver(writer, content_id, left, holder)
            except BaseException as e:  # told by the thread that waits
                errors.append(e)

        threads = [threading.Thread(target=deliver, args=(h,), daemon=True) for h in holders[1:HOLDERS]]
        for thread in threads:
            thread.start()
        deliver(holders[0])
        for thread in threads:
            thread.join()
        self._store.check_not_gone(content_id)
        if errors:
            raise errors[0]
        if writer.missing():
            raise NotYetAvailableError(f"the holders of content {content_id.hex()} went away: it is tried again")

    def _deliver(self, writer: CiphertextWriter, content_id: ContentId, left: deque[int], holder: Holder) -> None:
        keys, link = holder
        asked: deque[tuple[int, Future[Replied]]] = deque()
        try:
            while not self._closing:
                while left and len(asked) < WINDOW:
                    try:
                        number = left.popleft()
                    except IndexError:
                        break
                    ask = p.Segment(content_id=content_id, number=number)
                    asked.append((number, link.send(ask, timeout=SEGMENT_S)))
                if not asked:
                    return
                number, future = asked[0]
                _, payload = settle(future, SEGMENT_S)
                if len(payload) != 1:
                    raise UntrustedInputError("a peer's reply does not fit the request")
                writer.write_segment(number, payload[0])
                asked.popleft()
        except (TransportError, NotYetAvailableError, UntrustedInputError) as e:
            _log.info("segments of %s from %s: %s", content_id.hex(), keys.device, e)
        except ForgottenError:
            self._store.check_not_gone(content_id)
        finally:
            left.extend(number for number, _ in asked)

    # -- eagerly ------------------------------------------------------------------------------------------------

    def _hopeful(self) -> None:
        """Somebody new is there: try at once what failed before."""
        for wish in list(self._wishes.values()):
            wish.next_try = 0.0
        self._wake.set()

    def _follow(self) -> None:
        while not self._closing:
            self._wake.wait(1.0 if self._wishes else None)
            self._wake.clear()
            try:
                self._note_new()
                self._try_wishes()
            except VaultError as e:
                _log.warning("fetching: %s", e)

    def _note_new(self) -> None:
        query = DCBQuery(items=[DCBQueryItem(types=[ev.ContentPublished.TOPIC])])
        while not self._closing:
            page = list(self._log.recorder.read(query, after=self._looked_at, limit=PAGE))
            for found in page:
                event = ev.PRODUCT_EVENTS.decode(found.event.type, found.event.data)
                assert isinstance(event, ev.ContentPublished)
                content_id = ContentId(event.content_id)
                if self._policy == "small" and event.padded_length > SMALL:
                    continue
                if not self._store.has_bytes(content_id) and not self._store.erased(content_id):
                    self._wishes.setdefault(content_id, _Wish())
            if page:
                self._looked_at = page[-1].position
            if len(page) < PAGE:
                return

    def _try_wishes(self) -> None:
        now = time.monotonic()
        if not self._network.links():
            return
        for content_id, wish in list(self._wishes.items()):
            if wish.next_try <= now:
                wish.next_try = now + LONGEST_PAUSE_S
                future = self._begin(content_id, self._eager)
                future.add_done_callback(partial(self._tried, content_id))

    def _tried(self, content_id: ContentId, done: Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None or isinstance(error, ForgottenError):
            self._wishes.pop(content_id, None)
            return
        if not isinstance(error, VaultError):
            _log.error("fetching %s failed unexpectedly: %r", content_id.hex(), error)
        wish = self._wishes.get(content_id)
        if wish is not None:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**wish.failures)
            wish.failures = min(wish.failures + 1, 16)
            wish.next_try = time.monotonic() + pause
