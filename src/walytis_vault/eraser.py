"""Carries out what ballots decided: erases contents on this node and publishes the receipt.

A process manager: it looks at ballots that touch new events (and, at start, at all that carried without our
receipt), erases through the content store, and appends `ContentErased` once. Every step can be repeated, so a
crash anywhere is finished at the next start. Contents whose declared expiry has come are erased the same way,
without a ballot. Order of steps: security.md 3.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec
from eventsourcing.dcb.api import DCBAppendCondition, DCBQuery, DCBQueryItem
from eventsourcing.persistence import IntegrityError

from walytis_vault.adapters.walytis.recorder import LogRecorder
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.forgetting import Ballot
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.ports import Clock, ContentStore
from walytis_vault.reading import read_families, read_state

T = TypeVar("T")

_log = logging.getLogger(__name__)
RETRY_S: Final = 30.0
"""How soon an erasure that failed (a full disk, say) is tried again."""
TRIGGERS: Final = [ev.ForgettingProposed.TOPIC, ev.ForgettingConsented.TOPIC, ev.MemberRemoved.TOPIC]
"""What may decide a ballot. Publications are looked at too, but each start sees them all: only for what they bring."""
PAGE: Final = 500
"""Ballots or revisions that are decided on together (a count)."""
SWEPT_AT_ONCE: Final = 10_000
READ_AT_ONCE: Final = 5_000


class _Brings(msgspec.Struct):
    """What makes a publication matter here."""

    content_id: bytes
    revises: bytes | None = None
    expires_ms: int | None = None


_BRINGS: Final = msgspec.msgpack.Decoder(_Brings)


class Eraser:
    """One for each node. `settle` may be called from any thread; a thread of its own follows the log."""

    def __init__(
        self,
        log: LogRecorder,
        store: ContentStore,
        *,
        device: str,
        clock: Clock,
        drop_from_views: Callable[[list[bytes]], None],
        make_room: Callable[[], None] = lambda: None,
        unpublished: Sequence[ContentId] = (),
    ) -> None:
        """Prepare; `start` runs.

        Args:
            drop_from_views: makes the views forget sealed descriptors and caches of erased contents. When it raises
                it is called again with the same contents; a receipt is published only after it returned.
            make_room: called before anything is erased: the disk may be full.
            unpublished: contents that the store held before anything was published by this process: those
                that no event speaks of were cut off between their bytes and their event, and are erased.
        """
        self._log = log
        self._store = store
        self._device = device
        self._clock = clock
        self._drop_from_views = drop_from_views
        self._make_room = make_room
        self._lock = threading.Lock()
        """One erasure at a time."""
        self._untold: set[ContentId] = set()
        """Contents that are to be erased, or were, and that the views do not know to be gone."""
        self._unpublished = list(unpublished)
        self._looked_at = 0
        self._failed = False
        self._expiries: dict[bytes, int] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eraser", daemon=True)
        self.last_error: str | None = None

    def start(self) -> None:
        """Finish what a crash left, then follow the log."""
        self._log.listen(self._wake)
        self._wake.set()
        self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Stop after the step under way. Bounded."""
        self._stop.set()
        self._wake.set()
        self._log.unlisten(self._wake)
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def settle(self, ballot_ids: Iterable[bytes]) -> None:
        """Erase what these ballots decided, if they carried; returns when it is done and receipted.

        Raises:
            StorageError: not finished; it is retried, and finished at the next start at the latest.
        """
        wanted = set(ballot_ids)
        if not wanted:
            return
        with self._lock:
            reading = read_families(self._log, ballots=wanted)
            verdicts = reading.state.verdicts()
            for ballot in reading.state.ballots.all():
                if ballot.ballot_id in wanted and ballot.carried:
                    family = {i for i, v in verdicts.items() if v.forgetting == "carried"}
                    self._erase(family | set(ballot.carried))
                    self._receipt(ballot)

    def _erase(self, contents: Iterable[bytes]) -> None:
        left = [ContentId(c) for c in sorted(contents) if not self._store.erased(ContentId(c))]
        if left:
            self._untold.update(left)
            self._make_room()
            fault("erase.before_store")
            self._store.erase(tuple(left))
            fault("erase.after_store")
        # Not only what is left: the last try may have erased, and failed after it.
        told = sorted(c for c in self._untold if self._store.erased(c))
        if told:
            self._drop_from_views([bytes(c) for c in told])
            self._untold.difference_update(told)

    def _receipt(self, ballot: Ballot) -> None:
        if self._device in ballot.receipts:
            return
        event = ev.ContentErased(contents=ballot.proposal.contents, ballot_id=ballot.ballot_id)
        self._append_once(event, ev.ballot_tag(ballot.ballot_id))

    def _append_once(self, event: ev.ContentErased, tag: str) -> None:
        """Append our receipt unless it stands already."""
        query = DCBQuery(items=[DCBQueryItem(types=[ev.ContentErased.TOPIC], tags=[tag])])
        for _ in range(16):
            found = self._log.read(query)
            after = found.head
            if any(isinstance(e.event, ev.LoggedEvent) and e.event.origin.device == self._device for e in found):
                return
            try:
                self._log.append([ev.to_dcb(event)], DCBAppendCondition(fail_if_events_match=query, after=after))
            except IntegrityError:
                continue  # somebody else's receipt came in between
            return

    # -- following the log --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._pause())
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self.look()
                self._failed, self.last_error = False, None
            except VaultError as e:
                self._failed, self.last_error = True, str(e)
                _log.warning("forgetting is not finished and will be repeated: %s", e.code)
            except Exception as e:  # a bug, but no reason to forget nothing any more
                self._failed, self.last_error = (
                    True,
                    f"internal error ({type(e).__name__}): the node's log has the details",
                )
                _log.exception("forgetting is not finished and will be repeated")

    def look(self) -> None:
        """Finish what a crash left, erase what new events decided and what has expired. Raises StorageError."""
        self._sweep()
        self._follow()
        self._expire()

    def _pause(self) -> float | None:
        """Seconds until something is due: a retry, or the next expiry. None when nothing is."""
        due = [RETRY_S] if self._failed else []
        if self._expiries:
            due.append(max(0.0, (min(self._expiries.values()) - self._clock.wall_ms()) / 1000))
        # A wall clock can be set: look again within the hour however far away an expiry seems.
        return min([*due, 3600.0]) if due else None

    def _sweep(self) -> None:
        """Erase what a crash cut off between a content's bytes and its event; nobody was told that it is there."""
        tags = {ev.content_tag(c): c for c in self._unpublished}
        orphans = [tags[tag] for some in _parts(tags, SWEPT_AT_ONCE) for tag in self._log.index.without_event(some)]
        if orphans:
            _log.info("erasing %d contents that were never published", len(orphans))
            with self._lock:
                self._store.erase(tuple(orphans))
        self._unpublished = []

    def _follow(self) -> None:
        """Look at everything new; only afterwards count it as looked at."""
        while (upto := self._log.index.horizon) > self._looked_at:
            ballots: set[bytes] = set()
            for found in self._log.read(DCBQuery(items=[DCBQueryItem(types=TRIGGERS)]), after=self._looked_at):
                event = ev.PRODUCT_EVENTS.decode(found.event.type, found.event.data)
                if isinstance(event, ev.ForgettingProposed | ev.ForgettingConsented):
                    ballots.add(event.ballot_id)
                elif isinstance(event, ev.MemberRemoved):
                    ballots |= self._all_ballots()
            for some in _parts(ballots, PAGE):
                self.settle(some)
            for some in _parts(self._look_at_publications(upto), PAGE):
                self._forget_late(some)
            self._looked_at = upto

    def _look_at_publications(self, upto: int) -> list[bytes]:
        """Note the expiries of new ones; returns the revisions among them."""
        revisions: list[bytes] = []
        after = self._looked_at
        while page := self._log.index.payloads(ev.ContentPublished.TOPIC, after, upto, READ_AT_ONCE):
            for after, payload in page:  # noqa: B007 - the last one is where the next page begins
                brings = _BRINGS.decode(payload)
                if brings.revises is not None:
                    revisions.append(brings.content_id)
                if brings.expires_ms is not None and not self._store.erased(ContentId(brings.content_id)):
                    self._expiries[brings.content_id] = brings.expires_ms
        return revisions

    def _all_ballots(self) -> set[bytes]:
        query = DCBQuery(items=[DCBQueryItem(types=[ev.ForgettingProposed.TOPIC])])
        found = (ev.PRODUCT_EVENTS.decode(e.event.type, e.event.data) for e in self._log.read(query))
        return {e.ballot_id for e in found if isinstance(e, ev.ForgettingProposed)}

    def _forget_late(self, revisions: Sequence[bytes]) -> None:
        """A revision of something that was forgotten is forgotten too, however late it arrives."""
        with self._lock:
            verdicts = read_state(self._log, contents=revisions).state.verdicts()
            self._erase(i for i in revisions if i in verdicts and verdicts[i].forgetting == "carried")

    def _expire(self) -> None:
        """Erase contents whose publisher declared a time that has come, and their revisions."""
        now = self._clock.wall_ms()
        due = sorted(c for c, at in self._expiries.items() if at <= now)
        for start in range(0, len(due), LIMITS.ballot_contents):
            part = due[start : start + LIMITS.ballot_contents]
            with self._lock:
                verdicts = read_state(self._log, contents=part).state.verdicts()
                gone = {i for i, v in verdicts.items() if v.expires_ms is not None and v.expires_ms <= now}
                self._erase(gone)
                for content in sorted(gone):
                    self._append_once(ev.ContentErased(contents=(content,)), ev.content_tag(content))
            for content in part:
                self._expiries.pop(content, None)


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, `size` at a time."""
    left = iter(items)
    while part := list(itertools.islice(left, size)):
        yield part
