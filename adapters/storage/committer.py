"""Group commit: one thread makes everything that waits durable with one fsync of each file.

Order for each group: ciphertext into the pack (fdatasync), keys into slots (fdatasync), folder of blobs (fsync),
index rows (one transaction). Only then is anything acknowledged. A group that fails leaves nothing behind
that the next start would not remove, and each waiting caller gets the error. Nobody waits longer than `WAIT_S`:
what the disk takes after its caller gave up is destroyed again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

import msgspec

from walytis_vault.adapters.storage.index import IN_BLOB, IN_PACK, NOWHERE, Row
from walytis_vault.adapters.storage.packs import PackRange
from walytis_vault.adapters.storage.replica import dropped_meanwhile, forgotten
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import ConflictError, StorageError, VaultError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId, ContentKey, Root

MAX_GROUP: Final = 512
"""Contents in one group; bounds the memory and the time that a caller waits for others."""
MAX_GROUP_BYTES: Final = 8 << 20
WAIT_S: Final = 60.0
"""How long a caller waits for the disk. One that writes back for other programs may take seconds."""


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class Arrival(msgspec.Struct, kw_only=True, eq=False):
    """Something to make durable: a key, bytes, or both."""

    content_id: ContentId
    key: ContentKey | None = None
    ciphertext: bytes | None = None
    """Bytes for a pack; None when they are in a renamed blob file, or when only the key comes."""
    in_blob: bool = False
    ciphertext_length: int | None = None
    root: Root | None = None
    done: Any = msgspec.field(default_factory=_locked)
    """A lock that is released when the arrival is durable, or failed."""
    error: BaseException | None = None
    stored: bool = False
    settled: bool = False
    """The store thread is done with it."""
    abandoned: bool = False
    """Its caller gave up before."""


class GroupCommitter:
    """The store thread. `commit` may be called from many threads."""

    def __init__(self, state: StoreState, forget: Callable[[Sequence[ContentId]], None]) -> None:
        """Start the thread; `forget` destroys contents whose callers gave up."""
        self._state = state
        self._forget = forget
        self._waiting: list[Arrival] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="content-store-commit", daemon=True)
        self._thread.start()

    def commit(self, arrival: Arrival) -> None:
        """Wait until the arrival is durable.

        Raises:
            StorageFullError, StorageError: nothing was acknowledged and nothing of it remains.
            ForgottenError, ConflictError: the content must not, or need not, be stored.
        """
        self.commit_all([arrival])
        if arrival.error is not None:
            raise arrival.error

    def commit_all(self, arrivals: Sequence[Arrival]) -> None:
        """Wait until each is durable, or has its `error`, at most `WAIT_S`. Raises StorageError when closed."""
        until = time.monotonic() + WAIT_S
        with self._wake:
            if self._stopping:
                raise StorageError("the content store is closed")
            self._waiting.extend(arrivals)
            self._wake.notify()
        for arrival in arrivals:
            if not arrival.done.acquire(timeout=max(0.0, until - time.monotonic())):
                self._give_up(arrival)

    def _give_up(self, arrival: Arrival) -> None:
        with self._wake:
            if arrival.settled:
                return
            arrival.abandoned = True
            arrival.error = StorageError(f"the disk did not take it within {WAIT_S:g} s: look after it, then repeat")
            if arrival in self._waiting:
                self._waiting.remove(arrival)

    def close(self) -> None:
        """Finish what waits, then stop the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._stopping:
                    self._wake.wait()
                if not self._waiting:
                    return
                group = self._next_group()
            try:
                with self._state.lock:
                    self._store(group)
            except BaseException as e:
                self._state.note(e)
                error = e if isinstance(e, VaultError) else StorageError(f"the content store failed: {e!r}")
                for arrival in group:
                    arrival.error = arrival.error or error
            with self._wake:
                for arrival in group:
                    arrival.settled = True
            for arrival in group:
                arrival.done.release()
            self._destroy([a.content_id for a in group if a.abandoned and a.stored and a.key and a.ciphertext_length])

    def _destroy(self, unwanted: Sequence[ContentId]) -> None:
        """No event will speak of these. What comes from peers stays: the log knows it."""
        try:
            self._forget(unwanted)
        except VaultError as e:
            self._state.note(e)  # the next start finishes it

    def _next_group(self) -> list[Arrival]:
        count = size = 0
        for arrival in self._waiting:
            size += len(arrival.ciphertext or b"")
            if count and (count == MAX_GROUP or size > MAX_GROUP_BYTES):
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    def _store(self, group: Sequence[Arrival]) -> None:
        state = self._state
        state.check_writable()
        accepted: list[tuple[Arrival, Row | None]] = []
        taken: set[ContentId] = set()
        found = state.index.look_up([a.content_id for a in group])
        for arrival, (row, gone) in zip(group, found, strict=True):
            twice = arrival.content_id in taken
            refusal = forgotten(arrival.content_id) if gone else _refusal(arrival, row, twice) or self._lost(arrival)
            if refusal is not None:
                arrival.error = refusal
            else:
                taken.add(arrival.content_id)
                accepted.append((arrival, row))
        if accepted:
            self._store_accepted(accepted)

    def _lost(self, arrival: Arrival) -> VaultError | None:
        """Why a content in a blob file cannot be stored: the file went while the arrival waited."""
        if not arrival.in_blob or self._state.blobs.has(arrival.content_id):
            return None
        if self._state.index.is_dropped(arrival.content_id):
            return dropped_meanwhile(arrival.content_id)
        return StorageError(f"the bytes of content {arrival.content_id.hex()} vanished before they were stored: repeat")

    def _store_accepted(self, accepted: Sequence[tuple[Arrival, Row | None]]) -> None:
        state = self._state
        fresh = [a for a, row in accepted if a.key is not None and (row is None or row.slot is None)]
        packed = [a for a, _ in accepted if a.ciphertext is not None]
        slots: dict[ContentId, int] = {}
        ranges: dict[ContentId, PackRange] = {}
        syncing: Future[None] | None = None
        try:
            appended = state.packs.append([a.ciphertext for a in packed if a.ciphertext is not None])
            ranges = {a.content_id: r for a, r in zip(packed, appended, strict=True)}
            fault("publish.after_pack_write")
            # The two files sync at the same time: that halves the wait of a lone publish.
            syncing = state.helpers.submit(state.packs.sync) if packed else None
            slots = dict(zip((a.content_id for a in fresh), state.slots.take(len(fresh)), strict=True))
            held = {r.content_id: r.slot for _, r in accepted if r is not None and r.slot is not None}
            keys = {a.content_id: a.key for a, _ in accepted if a.key is not None}
            entries = [(slots.get(i, held.get(i, -1)), i, key) for i, key in keys.items()]
            if entries:
                state.slots.write(entries)
                state.slots.sync()
            fault("publish.after_slot")
            if syncing is not None:
                syncing.result()
            if any(a.in_blob for a, _ in accepted):
                state.blobs.sync_folder()
            fault("publish.after_sync")
            rows = [_merged(a, row, slots.get(a.content_id), ranges.get(a.content_id)) for a, row in accepted]
            # Of contents that are published here, both come at once, and for the first time.
            received = [a.content_id for a, _ in accepted if a.key is None]
            sent = [a.content_id for a, _ in accepted if a.ciphertext_length is None]
            with state.index.database.transaction() as connection:
                state.index.put_in(connection, rows)
                if received or sent:
                    state.index.back_in(connection, keys=sent, bodies=received)
        except BaseException as e:
            state.note(e)
            if syncing is not None:
                state.note(syncing.exception() or e)
            self._take_back(list(slots.values()), list(ranges.values()))
            raise
        state.index.keyless.difference_update(sent)
        state.index.presence.note([a.content_id for a, _ in accepted])
        state.packs.now_live(ranges.values())
        for arrival, _ in accepted:
            arrival.stored = True
        fault("publish.after_index")

    def _take_back(self, slots: list[int], ranges: list[PackRange]) -> None:
        """Leave no key of a failed group behind; what the disk refuses now, the next start does."""
        if self._state.failed:
            return
        self._state.packs.undo(ranges)
        if not slots:
            return
        try:
            self._state.slots.wipe(slots)
        except VaultError as e:
            self._state.note(e)
            return
        self._state.slots.release(slots)


def _refusal(arrival: Arrival, row: Row | None, twice: bool) -> VaultError | None:
    has_key = row is not None and row.slot is not None and arrival.key is not None
    has_bytes = row is not None and row.place != NOWHERE and arrival.ciphertext_length is not None
    if twice or (has_key and has_bytes) or (has_bytes and arrival.key is None):
        return ConflictError(f"content {arrival.content_id.hex()} is stored already")
    return None


def _merged(arrival: Arrival, row: Row | None, slot: int | None, where: PackRange | None) -> Row:
    old = row or Row(arrival.content_id)
    brings_bytes = arrival.ciphertext_length is not None
    place = (IN_BLOB if arrival.in_blob else IN_PACK) if brings_bytes else old.place
    return Row(
        arrival.content_id,
        slot if slot is not None else old.slot,
        place,
        where if brings_bytes else old.range,
        arrival.ciphertext_length if brings_bytes else old.ciphertext_length,
        arrival.root if arrival.root is not None else old.root,
    )
