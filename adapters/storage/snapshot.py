"""A consistent picture of the content store while it is in use, for backups.

Index and key slots are copied under the store's lock, in which no place changes; pack files are held open from then
on, so that compaction cannot take them away; blob files never change once they have their name. What is forgotten
meanwhile is gone from the picture as well, or is told afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.ids import ContentId


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to the picture besides the two files that were written."""

    packs: dict[str, int]
    """Name of a pack file -> open file descriptor."""
    blobs: tuple[Path, ...]
    """Blob files; one may be gone by the time it is read."""
    contents: tuple[ContentId, ...]
    forgotten: frozenset[bytes]
    """Tombstones, and what was being forgotten: the picture knows of these itself."""


class Pictures:
    """The part of the content store that backups use."""

    _state: StoreState

    def gone_ids(self) -> set[bytes]:
        """Every content whose forgetting has begun or is done here."""
        return self._state.index.gone_ids()

    @contextmanager
    def picture(self, folder: Path, *, index: str, slots: str) -> Iterator[Picture]:
        """Write index and slots into a folder, and hold the rest for the time of the block.

        Raises:
            StorageError: they cannot be written.
        """
        state, opened = self._state, dict[str, int]()
        try:
            with state.lock:
                state.check_writable()
                state.index.database.snapshot(folder / index)
                with storage_errors("copy the key slots"):
                    (folder / slots).touch(mode=0o600)
                    (folder / slots).write_bytes(state.slots.whole())
                with storage_errors("open the pack files"):
                    for number, _, _ in state.index.pack_ends():
                        path = Path(state.packs.path(number))
                        opened[path.name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                blobs = tuple(state.blobs.folder / f"{text}.blob" for text in sorted(state.index.in_blobs()))
                contents = tuple(state.index.content_ids())
                forgotten = frozenset(state.index.gone_ids())
            yield Picture(packs=opened, blobs=blobs, contents=contents, forgotten=forgotten)
        finally:
            for fd in opened.values():
                os.close(fd)
