"""Dropping: this node lets go of a content's bytes to free their space. The key stays; it can be fetched again.

Not forgetting: nothing is said on the log, and others keep their copies. The bytes are overwritten all the same,
so that forgetting the content later has nothing left to find. Note (commit) -> overwrite or unlink -> row (commit);
the next start finishes what a crash left. Works on a full disk, as forgetting does.
"""

from __future__ import annotations

from collections.abc import Sequence

from walytis_vault.adapters.storage.ballast import Ballast
from walytis_vault.adapters.storage.index import NOWHERE, Row
from walytis_vault.adapters.storage.replica import dropped_meanwhile
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import StorageError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId


def drop(state: StoreState, ballast: Ballast, content_id: ContentId) -> int:
    """Drop the bytes of one content, also those that are still coming in.

    Returns:
        Bytes of ciphertext that were here; 0 when there were none.
    Raises:
        ForgottenError, StorageError (repeat it, or the next start finishes it).
    """
    with state.lock:
        state.check_writable()
        state.check_not_gone(content_id)
        row = state.index.get(content_id)
        coming = state.index.partial(content_id)
        if (row is None or row.place == NOWHERE) and coming is None:
            return 0
        if coming is not None:
            state.cut_off(content_id, dropped_meanwhile(content_id))
        try:
            ballast.for_step(lambda: state.index.begin_drop(content_id))
            fault("drop.after_mark")
            _finish(state, ballast, [row] if row is not None else [], [content_id])
        except StorageError as e:
            state.note(e)
            raise
    return row.ciphertext_length or 0 if row is not None and row.place != NOWHERE else 0


def finish_drops(state: StoreState, ballast: Ballast) -> None:
    """Finish what an earlier process began. Blob files that no row names are already gone."""
    rows = state.index.half_dropped()
    if rows:
        _finish(state, ballast, rows, ())


def _finish(state: StoreState, ballast: Ballast, rows: Sequence[Row], files: Sequence[ContentId]) -> None:
    ranges = [row.range for row in rows if row.range is not None]
    state.packs.wipe(ranges)
    fault("drop.after_overwrite")
    state.blobs.remove(files)
    fault("drop.after_bytes")
    if ranges:
        ballast.for_step(lambda: state.index.end_drop([row.content_id for row in rows]))
        state.packs.now_waste(ranges)
