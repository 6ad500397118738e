"""Blob files: one file for each large ciphertext, followed by its leaf hashes.

Written under a temporary name in the same folder, fsynced, renamed, folder fsynced. `<id>.part` holds a
ciphertext that is still coming from peers. What the index does not name is removed at start.
Format: docs/wire-format-content.md, "Blob files and packs".
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from walytis_vault.adapters.crypto.ciphertext_root import LEAF_BYTES, root_of, segment_count, split_leaves
from walytis_vault.adapters.storage.failures import storage_errors, sync_errors
from walytis_vault.domain.errors import DamagedContentError
from walytis_vault.domain.ids import ContentId, Root
from walytis_vault.domain.ports import FileSystem

BLOB_SUFFIX: Final = ".blob"
PART_SUFFIX: Final = ".part"
TEMP_SUFFIX: Final = ".temp"


class BlobFiles:
    """All blob files of one store. Threads may share it, one writer to each content."""

    def __init__(self, folder: Path, fs: FileSystem) -> None:
        """Bind to a folder that exists."""
        self._folder = folder
        self._fs = fs

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._folder

    def blob_path(self, content_id: ContentId) -> str:
        """Where a complete ciphertext lies."""
        return str(self._folder / f"{content_id.hex()}{BLOB_SUFFIX}")

    def part_path(self, content_id: ContentId) -> str:
        """Where an incoming ciphertext lies."""
        return str(self._folder / f"{content_id.hex()}{PART_SUFFIX}")

    def temp_path(self, content_id: ContentId) -> str:
        """Where a ciphertext is being written by us."""
        return str(self._folder / f"{content_id.hex()}{TEMP_SUFFIX}")

    def sweep(self, blobs: Collection[str], parts: Collection[str]) -> set[str]:
        """Remove every file that the index does not name.

        Args:
            blobs, parts: content ids in hex that the index has.
        Returns:
            The content ids of `blobs` whose file is missing, in hex.
        """
        found: set[str] = set()
        removed = False
        with storage_errors("look at the blob files"):
            for name in self._fs.listdir(str(self._folder)):
                stem, dot, suffix = name.partition(".")
                if dot + suffix == BLOB_SUFFIX and stem in blobs:
                    found.add(stem)
                elif not (dot + suffix == PART_SUFFIX and stem in parts):
                    self._fs.unlink(str(self._folder / name))
                    removed = True
        if removed:
            self.sync_folder()
        return set(blobs) - found

    def has(self, content_id: ContentId) -> bool:
        """Whether there is a file with a complete ciphertext."""
        with storage_errors("look at the blob files"):
            return self._fs.size(self.blob_path(content_id)) is not None

    def open_blob(self, content_id: ContentId) -> int | None:
        """A read-only descriptor, None when the file is missing."""
        with storage_errors("open a blob file"):
            try:
                return self._fs.open(self.blob_path(content_id), os.O_RDONLY)
            except FileNotFoundError:
                return None

    def read_leaves(self, fd: int, ciphertext_length: int, root: Root) -> list[bytes]:
        """Return the leaf hashes behind the ciphertext, checked against the root.

        Raises:
            DamagedContentError: they do not give this root.
        """
        size = segment_count(ciphertext_length) * LEAF_BYTES
        with storage_errors("read a blob file"):
            joined = self._fs.pread(fd, size, ciphertext_length)
        if len(joined) != size:
            raise DamagedContentError("the stored bytes of this content are cut short: fetch it again from a peer")
        leaves = split_leaves(joined)
        if root_of(leaves, ciphertext_length) != root:
            raise DamagedContentError("the stored bytes of this content do not match its record")
        return leaves

    def remove(self, content_ids: Collection[ContentId]) -> None:
        """Unlink every file of these contents, durably. Missing ones count as removed."""
        removed = False
        with storage_errors("remove blob files"):
            for content_id in content_ids:
                for path in (self.blob_path(content_id), self.part_path(content_id), self.temp_path(content_id)):
                    if self._fs.size(path) is not None:
                        self._fs.unlink(path)
                        removed = True
        if removed:
            self.sync_folder()

    def sync_folder(self) -> None:
        """Make creations, renames and removals durable. Raises SyncFailedError."""
        with sync_errors("change the folder of blob files"):
            self._fs.fsync_folder(str(self._folder))
