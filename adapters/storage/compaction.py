"""Compaction: packs that are mostly waste are copied together, and their files removed.

Copy to another pack, fdatasync, index rows (one transaction), unlink, fsync folder. Killed anywhere, the next
start sees either the old place (and cuts the copies off) or the new one (and removes the old pack).
"""

from __future__ import annotations

from walytis_vault.adapters.storage.index import Row
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import StorageError
from walytis_vault.domain.faults import fault


def compact(state: StoreState, *, everything: bool = False) -> int:
    """Compact what is worth it, one pack at a time, so that commits wait for one pack at most.

    Args:
        everything: also packs with any waste at all, down to the one being written.
    Returns:
        How many packs were removed.
    Raises:
        StorageError: stopped; nothing is lost. Repeat after the cause is gone.
    """
    done = 0
    with state.lock:
        numbers = state.packs.wasteful() if everything else state.packs.worth_compacting()
    for number in numbers:
        with state.lock:
            state.check_writable()
            try:
                _compact_one(state, number)
            except StorageError as e:
                state.note(e)
                raise
        done += 1
    return done


def _compact_one(state: StoreState, number: int) -> None:
    rows = [row for row in state.index.in_pack(number) if row.range is not None]
    if rows:
        _move(state, number, rows)
    fault("compact.before_unlink")
    state.packs.remove(number)
    fault("compact.after_unlink")


def _move(state: StoreState, number: int, rows: list[Row]) -> None:
    state.packs.retire(number)
    old = [row.range for row in rows if row.range is not None]
    # Damaged bytes move as they are: readers and the audit tell, here nothing is judged or dropped.
    pieces = [state.packs.read(place).ljust(place.length, b"\x00") for place in old]
    new = state.packs.append(pieces)
    try:
        fault("compact.after_copy")
        state.packs.sync()
        fault("compact.after_sync")
        moved = [
            Row(row.content_id, row.slot, row.place, place, row.ciphertext_length, row.root)
            for row, place in zip(rows, new, strict=True)
        ]
        with state.index.database.transaction() as connection:
            state.index.put_in(connection, moved)
    except BaseException:
        state.packs.undo(new)
        raise
    state.packs.now_live(new)
    state.packs.now_waste(old)
    fault("compact.after_index")
