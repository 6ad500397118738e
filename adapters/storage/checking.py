"""What the content store says of its own contents: are bytes and key here, and are they the right ones?

`has_bytes` and `is_available` believe the index; `verify` and `check_key` read the disk, and what they find out about a
key is noted, so that a content whose key is lost is not shown as available. Refuses to judge while locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from walytis_vault.adapters.crypto.content_cipher import content_context, key_fits
from walytis_vault.adapters.storage.content_reader import SegmentSource
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import DamagedContentError, ForgottenError, NotYetAvailableError, StorageError
from walytis_vault.domain.ids import ContentId, Root

KeyState = Literal["right", "wrong", "none"]


class Checks:
    """The part of the content store that looks at what is there."""

    _state: StoreState

    def has_bytes(self, content_id: ContentId) -> bool:
        """Whether the whole ciphertext is here (by the index; `verify` reads it)."""
        return self._state.index.has_bytes(content_id)

    def is_available(self, content_id: ContentId) -> bool:
        """Whether ciphertext and key are here (by the index, and by what `check_key` found)."""
        return self._state.index.is_available(content_id)

    def unsettled(self, content_ids: Sequence[ContentId]) -> list[ContentId]:
        """Those (of at most 512) that are to be fetched: neither available, nor forgotten, nor dropped."""
        return self._state.index.unsettled(content_ids)

    def verify(self, content_id: ContentId, root: Root) -> bool:
        """Read all ciphertext and compare with the root. False when missing, damaged or forgotten."""
        try:
            source = SegmentSource(self._state, content_id, root)
        except (DamagedContentError, NotYetAvailableError, ForgottenError):
            return False
        try:
            for number in range(source.count):
                source.segment(number)
        except (DamagedContentError, ForgottenError):
            return False
        finally:
            source.close()
        return True

    def check_key(self, content_id: ContentId, *, author: str, header: bytes) -> KeyState:
        """Read the content's key and hold it against the commitment in the header that is on the log.

        Returns:
            "none" when there is none here; "wrong" when it does not open, or is not the committed one.
        Raises:
            LockedError, StorageError.
        """
        state = self._state
        state.keys.check_unlocked()
        with state.lock:
            row = state.index.get(content_id)
            if row is None or row.slot is None:
                return "none"
            found = state.slots.read(row.slot)
            context = content_context(state.vault_id, author, content_id)
            right = found is not None and found[0] == content_id and key_fits(found[1], context, header)
            if right == (content_id in state.index.keyless):
                try:
                    state.index.note_key(content_id, lost=not right)
                except StorageError as e:
                    state.note(e)  # found out again by the next who asks
        return "right" if right else "wrong"

    def lost_bytes(self, content_id: ContentId) -> bool:
        """Whether the ciphertext was here, vanished from the disk, and has not come back."""
        return self._state.index.lost_bytes(content_id)

    def lost(self) -> int:
        """How many contents lost their bytes or their key on this disk, and have not got them back (a count)."""
        return self._state.index.lost()
