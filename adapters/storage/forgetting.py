"""Forgetting: the state machine that destroys keys and bytes for ever.

Mark (commit) -> overwrite key slots, fdatasync, read back -> unlink or overwrite ciphertext, fsync folder ->
delete rows, checkpoint -> tombstone (commit). Each step may be repeated; the next start finishes what a
crash left. A full disk does not stop it: only the marks need space, and the ballast is given up for them.
Specified in docs/wire-format-content.md, "Blob files and packs".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from walytis_vault.adapters.storage.ballast import Ballast
from walytis_vault.adapters.storage.index import Row
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import StorageError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId

AT_ONCE: Final = 128
"""Contents in one pass: bounds the space that marking needs on a full disk."""


class Forgetting:
    """Runs the state machine. Calls exclude each other and all other changes by the store's lock."""

    def __init__(self, state: StoreState, ballast: Ballast) -> None:
        """Bind to a store."""
        self._state = state
        self._ballast = ballast

    def forget(self, content_ids: Sequence[ContentId]) -> None:
        """Destroy these contents; those that were never here get a tombstone too.

        Raises:
            StorageError: not finished; repeat, or restart, to finish.
        """
        distinct = sorted(set(content_ids))
        for start in range(0, len(distinct), AT_ONCE):
            with self._state.lock:
                ids = [i for i in distinct[start : start + AT_ONCE] if not self._state.index.is_forgotten(i)]
                if ids:
                    self._guarded(ids)

    def finish_unfinished(self) -> None:
        """Finish what an earlier process began."""
        ids = self._state.index.unfinished_forgetting()
        for start in range(0, len(ids), AT_ONCE):
            with self._state.lock:
                self._guarded(ids[start : start + AT_ONCE])

    def _guarded(self, ids: Sequence[ContentId]) -> None:
        self._state.check_writable()
        try:
            self._run(ids)
        except StorageError as e:
            self._state.note(e)
            raise

    def _run(self, ids: Sequence[ContentId]) -> None:
        index = self._state.index
        fault("forget.before_mark")
        self._ballast.for_step(lambda: index.mark_forgetting(ids))
        fault("forget.after_mark")
        for content_id in ids:
            self._state.cut_off(content_id)
        rows = index.get_many(ids)
        slots = [r.slot for r in rows if r.slot is not None]
        if slots:
            self._state.slots.wipe(slots)
        fault("forget.after_slot")
        ranges = [r.range for r in rows if r.range is not None]
        self._state.packs.wipe(ranges)
        fault("forget.after_overwrite")
        self._state.blobs.remove(ids)
        fault("forget.after_bytes")
        self._ballast.for_step(lambda: index.delete_rows(ids))
        fault("forget.after_rows")
        self._ballast.for_step(index.database.checkpoint)
        fault("forget.after_checkpoint")
        self._ballast.for_step(lambda: index.bury(ids))
        fault("forget.after_tombstone")
        self._count(rows)

    def _count(self, rows: Sequence[Row]) -> None:
        self._state.slots.release([r.slot for r in rows if r.slot is not None])
        self._state.packs.now_waste(r.range for r in rows if r.range is not None)
