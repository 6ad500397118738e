"""When contents are fetched from other members' nodes: when somebody asks, and before, as the node's rule says.

Each content is fetched once at a time; an attempt that found nobody is repeated after growing pauses, and at once
when a device comes back. Whoever waits for one content holds up no other. How it is done: transfer.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, Final, Literal, TypeVar

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem

from walytis_vault.adapters.storage.ciphertext_writer import CiphertextWriter
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import ForgottenError, NotYetAvailableError, TimedOutError, TransportError, VaultError
from walytis_vault.domain.ids import ContentId
from walytis_vault.peers.network import PeerNetwork
from walytis_vault.peers.transfer import HoldersLostError, Transfers

SMALL: Final = 1 << 20
"""Padded bytes up to which `small` fetches, unless a limit is given."""
DEMAND_WORKERS: Final = 8
EAGER_WORKERS: Final = 2
WAITERS: Final = 4
"""Requests that may wait for a holder's return (a count): each keeps a thread that serves clients."""
LOOK_AGAIN_S: Final = 3.0
LOOK_UP_S: Final = 1.0
"""Seconds after which whoever waits looks whether it is still wanted."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 300.0
PAGE: Final = 500

T = TypeVar("T")

_log = logging.getLogger(__name__)


class FetchRule(msgspec.Struct, frozen=True, kw_only=True):
    """What a node fetches before anybody asks. Whatever it says, a request fetches what it asks for."""

    mode: Literal["all", "small", "on-request"] = "small"
    limit: int | None = None
    """Padded bytes of the largest content that is fetched unasked; None: 1 MiB for `small`, any for `all`."""
    space: int | None = None
    """Bytes on disk beyond which nothing is fetched unasked; None: no bound."""

    def wants(self, padded_length: int) -> bool:
        """Whether a content of this size is fetched unasked."""
        limit = self.limit if self.limit is not None else SMALL if self.mode == "small" else None
        return self.mode != "on-request" and (limit is None or padded_length <= limit)


class _Wish(msgspec.Struct):
    """A content that is to be fetched though nobody waits for it."""

    size: int
    """Padded bytes."""
    asked: bool = False
    """Somebody asked for it, and it came in part: no limit applies."""
    next_try: float = 0.0
    failures: int = 0


class _Run(msgspec.Struct):
    """One attempt."""

    opened: Future[CiphertextWriter | None]
    """What takes the segments, once they come; None when it came at once."""
    done: Future[None]
    unasked: bool


class Fetcher:
    """One for each node. `open` may be called from any thread."""

    def __init__(
        self, log: VaultLog, store: DiskContentStore, network: PeerNetwork, transfers: Transfers, rule: FetchRule
    ) -> None:
        """Nothing is fetched by itself before `start`."""
        self._log, self._store, self._network, self._transfers = log, store, network, transfers
        self._rule = rule
        self._lock = threading.RLock()
        self._running: dict[ContentId, _Run] = {}
        self._demand = ThreadPoolExecutor(DEMAND_WORKERS, thread_name_prefix="fetch")
        self._eager = ThreadPoolExecutor(EAGER_WORKERS, thread_name_prefix="fetch-eager")
        self._wishes: dict[ContentId, _Wish] = {}
        self._waiters = threading.BoundedSemaphore(WAITERS)
        self._came = threading.Condition()
        self._comings = 0
        """How often a device came back (a count)."""
        self._looked_at = 0
        self._full = False
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="fetcher", daemon=True)

    def start(self) -> None:
        """Fetch what the rule wants, now and from now on."""
        if self._rule.mode != "on-request":
            self._log.index.listen(self._wake)
        self._network.on_greeted(self.try_again)
        self._wake.set()
        self._thread.start()

    def close(self) -> None:
        """Stop after the segments under way. Bounded."""
        self._closing = True
        self._transfers.close()
        self._log.index.unlisten(self._wake)
        self._wake.set()
        with self._came:
            self._came.notify_all()
        self._demand.shutdown(wait=False, cancel_futures=True)
        self._eager.shutdown(wait=False, cancel_futures=True)
        if self._thread.ident is not None:
            self._thread.join(1.0)

    @property
    def wanted(self) -> int:
        """How many contents are still to be fetched unasked."""
        return len(self._wishes)

    def told(self) -> dict[str, Any]:
        """The rule, and whether its space is used up, for `status`."""
        return {**msgspec.structs.asdict(self._rule), "full": self._full}

    def open(
        self,
        content_id: ContentId,
        *,
        timeout: float,
        begun: bool = False,
        given_up: Callable[[], bool] = lambda: False,
    ) -> CiphertextWriter | None:
        """Begin to bring a content here: what takes its segments, or None when all of it is durable.

        When all holders go away while it comes, their return is waited for. The transfer goes on after a timeout,
        and when nobody reads along.

        Args:
            begun: whether the caller has read a part of it already, and so waits for the rest whatever happens.
            given_up: looked at about every second: whether the caller wants it no more.
        Raises:
            ForgottenError: it was forgotten. NotYetAvailableError: nobody who is connected holds it, or they
            went away and did not return in time. TimedOutError: it has not begun to come. StorageError.
        """
        until = time.monotonic() + timeout
        while True:
            comings = self._comings
            run = self._begin(content_id, self._demand)
            try:
                writer = _result(run.opened, until, given_up)
                if writer is not None and not writer.ended:
                    return writer
                return _result(run.done, until, given_up)
            except FutureTimeoutError as e:
                raise TimedOutError(f"content {content_id.hex()} is still being fetched: repeat the request") from e
            except NotYetAvailableError as e:
                begun = begun or isinstance(e, HoldersLostError)
                if not begun:
                    raise
                self._wishes.setdefault(content_id, _Wish(size=0, asked=True))
                if given_up() or not self._wait_for_return(comings, until):
                    raise

    def bring(self, content_id: ContentId, *, timeout: float) -> None:
        """As `open`, but return when all of it is durable. Raises as `open`."""
        until = time.monotonic() + timeout
        while self.open(content_id, timeout=until - time.monotonic()) is not None:
            with self._lock:
                run = self._running.get(content_id)
            try:
                if run is not None:
                    run.done.result(max(0.0, until - time.monotonic()))
            except FutureTimeoutError as e:
                raise TimedOutError(f"content {content_id.hex()} is still being fetched") from e

    def _wait_for_return(self, comings: int, until: float) -> bool:
        """Wait until a device comes back, or for a while; False when time is up, or too many wait already."""
        if not self._waiters.acquire(blocking=False):
            return False
        try:
            with self._came:
                if self._comings == comings and not self._closing:
                    # One that was away for a moment only does not count as coming back.
                    self._came.wait(max(0.0, min(LOOK_AGAIN_S, until - time.monotonic())))
            return not self._closing and time.monotonic() < until
        finally:
            self._waiters.release()

    def _begin(self, content_id: ContentId, pool: ThreadPoolExecutor) -> _Run:
        """The fetch that is under way, or a new one."""
        with self._lock:
            run = self._running.get(content_id)
            in_line = run is not None and run.unasked and pool is not self._eager
            # What waits in line is taken out of it, unless it has begun.
            if run is not None and not run.done.done() and not (in_line and run.done.cancel()):
                return run
            if self._closing:
                raise TransportError("the node is closing: repeat the request when it is back")
            opened = Future[CiphertextWriter | None]()
            done = pool.submit(self._transfers.fetch, content_id, partial(_open, opened))
            run = self._running[content_id] = _Run(opened=opened, done=done, unasked=pool is self._eager)
        done.add_done_callback(lambda _: self._ended(content_id, run))
        return run

    def _ended(self, content_id: ContentId, run: _Run) -> None:
        with self._lock:
            if self._running.get(content_id) is run:
                del self._running[content_id]
        if not run.opened.done():
            error = TransportError("the node is closing") if run.done.cancelled() else run.done.exception()
            if error is None:
                run.opened.set_result(None)
            else:
                run.opened.set_exception(error)

    # -- unasked ------------------------------------------------------------------------------------------------

    def try_again(self) -> None:
        """Somebody new is there, or the vault was unlocked: try at once what failed before."""
        for wish in list(self._wishes.values()):
            wish.next_try = 0.0
        with self._came:
            self._comings += 1
            self._came.notify_all()
        self._wake.set()

    def _follow(self) -> None:
        while not self._closing:
            self._wake.wait(1.0 if self._wishes else None)
            self._wake.clear()
            try:
                if self._rule.mode != "on-request":
                    self._note_new()
                self._try_wishes()
            except VaultError as e:
                _log.warning("fetching: %s", e)

    def _note_new(self) -> None:
        query = DCBQuery(items=[DCBQueryItem(types=[ev.ContentPublished.TOPIC])])
        while not self._closing:
            page = list(self._log.recorder.read(query, after=self._looked_at, limit=PAGE))
            sizes: dict[ContentId, int] = {}
            for found in page:
                event = ev.PRODUCT_EVENTS.decode(found.event.type, found.event.data)
                assert isinstance(event, ev.ContentPublished)
                if self._rule.wants(event.padded_length):
                    sizes[ContentId(event.content_id)] = event.padded_length
            for content_id in self._store.unsettled(list(sizes)):
                self._wishes.setdefault(content_id, _Wish(size=sizes[content_id]))
            if page:
                self._looked_at = page[-1].position
            if len(page) < PAGE:
                return

    def _try_wishes(self) -> None:
        now = time.monotonic()
        due = [(content_id, wish) for content_id, wish in list(self._wishes.items()) if wish.next_try <= now]
        if not due or not self._network.links():
            return
        room = self._room()
        self._full = False
        for content_id, wish in due:
            if not wish.asked and wish.size > room:
                self._full = True
                wish.next_try = now + LONGEST_PAUSE_S / 10
                continue
            room -= wish.size
            wish.next_try = now + LONGEST_PAUSE_S
            run = self._begin(content_id, self._eager)
            run.done.add_done_callback(partial(self._tried, content_id))

    def _room(self) -> float:
        """Bytes that may still be fetched unasked. What is under way counts when it is here."""
        if self._rule.space is None:
            return float("inf")
        usage = self._store.usage()
        return self._rule.space - usage.blob_bytes - usage.pack_bytes

    def _tried(self, content_id: ContentId, done: Future[None]) -> None:
        wish = self._wishes.get(content_id)
        if done.cancelled():
            # Somebody asked for it, and fetches it without waiting in line; if that fails, it is our turn again.
            if wish is not None:
                wish.next_try = time.monotonic() + FIRST_PAUSE_S
            return
        error = done.exception()
        if error is None or isinstance(error, ForgottenError):
            self._wishes.pop(content_id, None)
            return
        if not isinstance(error, VaultError):
            _log.error("fetching %s failed unexpectedly: %r", content_id.hex(), error)
        if wish is not None:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**wish.failures)
            wish.failures = min(wish.failures + 1, 16)
            wish.next_try = time.monotonic() + pause


def _result(future: Future[T], until: float, given_up: Callable[[], bool]) -> T:
    """The result of a future; FutureTimeoutError when it is not there in time, or nobody wants it."""
    while True:
        try:
            return future.result(max(0.0, min(LOOK_UP_S, until - time.monotonic())))
        except FutureTimeoutError:
            if future.done() or given_up() or time.monotonic() >= until:
                raise


def _open(opened: Future[CiphertextWriter | None], writer: CiphertextWriter) -> None:
    if not opened.done():
        opened.set_result(writer)
