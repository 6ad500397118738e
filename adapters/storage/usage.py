"""What a content store takes on disk, in numbers."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the store takes on disk. Sizes are bytes."""

    contents: int
    """Contents whose ciphertext is here (a count)."""
    keys: int
    """Content keys that are here (a count)."""
    forgotten: int
    """Tombstones (a count)."""
    blob_bytes: int
    pack_bytes: int
    pack_live_bytes: int
    slots: int
    """Key slots in the slot file, used or not (a count)."""
