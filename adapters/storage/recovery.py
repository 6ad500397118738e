"""What a start does before anything is served: finish forgetting, remove what no row names, note what is lost.

Bounded: it reads the index and the folders' names, not the contents (`verify` does that).
"""

from __future__ import annotations

from walytis_vault.adapters.storage.ballast import Ballast
from walytis_vault.adapters.storage.dropping import finish_drops
from walytis_vault.adapters.storage.forgetting import Forgetting
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId


def recover(state: StoreState, ballast: Ballast) -> None:
    """Bring files and index of a store that was just opened to agree.

    Raises:
        StorageError: the disk refuses; nothing was lost.
    """
    index = state.index
    if state.slots.use(index.slots()):
        index.lose_slots(state.slots.capacity)
    fault("recover.after_slots")
    damaged = state.packs.use(index.pack_ends())
    packed = (row for pack in damaged for row in index.in_pack(pack))
    lost = [row.content_id for row in packed if row.range is not None and not state.packs.holds(row.range)]
    parts = {i.hex() for i in index.partials()}
    missing = state.blobs.sweep(index.in_blobs(), parts)
    lost += [ContentId(bytes.fromhex(text)) for text in sorted(missing)]
    if lost:
        index.lose_bytes(lost, noted=True)
    if damaged:
        state.packs.use(index.pack_ends())
    fault("recover.after_sweep")
    finish_drops(state, ballast)
    Forgetting(state, ballast).finish_unfinished()
    ballast.take()
