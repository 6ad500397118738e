"""Pack files: many small ciphertexts share one file, so that thousands a second need few fsyncs.

A pack is bare ciphertext back to back; the index alone knows what lies where, and what it does not name is
waste. Packs are appended to, their ranges overwritten to forget, and removed once nothing in them lives.
Not safe for concurrent writers: the store's lock guards all but `read`. Format: docs/wire-format-content.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from walytis_vault.adapters.storage.failures import storage_errors, sync_errors
from walytis_vault.domain.errors import StorageError
from walytis_vault.domain.ports import FileSystem

PACK_BYTES: Final = 16 << 20
"""A pack takes no more contents beyond this size: small enough to compact in one go."""
MAX_WASTE: Final = 0.5
"""Share of waste from which a pack is compacted."""
PACK_SUFFIX: Final = ".pack"


class PackRange(msgspec.Struct, frozen=True):
    """Where a small ciphertext lies."""

    pack: int
    offset: int
    length: int


class _Pack(msgspec.Struct):
    end: int = 0
    live: int = 0
    retired: bool = False


class PackFiles:
    """All packs of one store."""

    def __init__(self, folder: Path, fs: FileSystem, *, pack_bytes: int = PACK_BYTES) -> None:
        """Bind to a folder that exists; `use` must follow."""
        self._folder = folder
        self._fs = fs
        self._pack_bytes = pack_bytes
        self._packs: dict[int, _Pack] = {}
        self._torn: set[int] = set()
        """Packs with bytes behind their end that nobody owns, copies of living contents perhaps."""
        self._next = 1
        self._current: tuple[int, int] | None = None

    def use(self, ends: Iterable[tuple[int, int, int]]) -> list[int]:
        """Take over the index's packs; remove those that it does not name, and cut tails nobody owns.

        Args:
            ends: for each pack its number, the end of its last live range and its live bytes.
        Returns:
            Packs that are shorter than the index says: some of their contents are lost.
        """
        named = {pack: _Pack(end=end, live=live) for pack, end, live in ends}
        damaged: list[int] = []
        removed = False
        with storage_errors("look at the pack files"):
            for name in self._fs.listdir(str(self._folder)):
                number = _number(name)
                if number is not None:
                    self._next = max(self._next, number + 1)
                if number is None or number not in named:
                    self._fs.unlink(str(self._folder / name))
                    removed = True
            for number, pack in named.items():
                self._next = max(self._next, number + 1)
                size = self._fs.size(self.path(number)) or 0
                if size < pack.end:
                    damaged.append(number)
                elif size > pack.end:
                    self._cut(number, pack.end)
        if removed:
            self._sync_folder()
        self._packs = named
        return damaged

    def holds(self, place: PackRange) -> bool:
        """Whether the file is long enough for a range."""
        with storage_errors("look at the pack files"):
            return (self._fs.size(self.path(place.pack)) or 0) >= place.offset + place.length

    def append(self, pieces: Sequence[bytes]) -> list[PackRange]:
        """Write ciphertexts behind one another. Not durable before `sync`.

        Raises:
            StorageFullError, StorageError: what was written is waste that the next append overwrites.
        """
        ranges: list[PackRange] = []
        start = 0
        while start < len(pieces):
            number, fd = self._open_current()
            pack = self._packs[number]
            taken: list[bytes] = []
            offset = pack.end
            while start < len(pieces) and (not taken or offset < self._pack_bytes):
                piece = pieces[start]
                ranges.append(PackRange(number, offset, len(piece)))
                taken.append(piece)
                offset += len(piece)
                start += 1
            try:
                with storage_errors("write a pack file"):
                    self._fs.pwrite(fd, b"".join(taken), pack.end)
                pack.end = offset
                if start < len(pieces):
                    self.sync()
                    self._close_current()
            except StorageError:
                self.undo(ranges)
                raise
        return ranges

    def sync(self) -> None:
        """Make appended ciphertexts durable. Raises SyncFailedError."""
        if self._current is not None:
            with sync_errors("store contents in a pack file"):
                self._fs.fdatasync(self._current[1])

    def undo(self, ranges: Sequence[PackRange]) -> None:
        """Take back ranges that were appended last and did not enter the index.

        Their bytes stay until something is wiped, or the next start: the commit that failed may have taken effect on
        the disk after all, and then they are all there is. Wiping comes after a later commit: then it did not.
        """
        for found in ranges:
            pack = self._packs[found.pack]
            pack.end = min(pack.end, found.offset)
            self._torn.add(found.pack)

    def now_live(self, ranges: Iterable[PackRange]) -> None:
        """Count ranges that entered the index."""
        for found in ranges:
            self._packs[found.pack].live += found.length

    def now_waste(self, ranges: Iterable[PackRange]) -> None:
        """Count ranges that left the index."""
        for found in ranges:
            self._packs[found.pack].live -= found.length

    def read(self, place: PackRange, offset: int = 0, size: int | None = None) -> bytes:
        """Return bytes of one range; shorter when the file was cut. Any thread.

        Raises:
            FileNotFoundError: the pack is gone (compacted a moment ago): look the place up again.
            StorageError: the disk refused.
        """
        wanted = place.length - offset if size is None else min(size, place.length - offset)
        try:
            fd = self._fs.open(self.path(place.pack), os.O_RDONLY)
        except FileNotFoundError:
            raise
        except OSError as e:
            raise StorageError(f"cannot read a pack file: {e.strerror or e}") from e
        with storage_errors("read a pack file"):
            try:
                return self._fs.pread(fd, max(0, wanted), place.offset + offset)
            finally:
                self._fs.close(fd)

    def wipe(self, ranges: Sequence[PackRange]) -> None:
        """Overwrite ranges with random bytes, and cut off what `undo` left, durably. Missing packs count as wiped."""
        self._cut_tails()
        by_pack: dict[int, list[PackRange]] = {}
        for found in ranges:
            by_pack.setdefault(found.pack, []).append(found)
        for number, found_here in by_pack.items():
            with storage_errors("overwrite forgotten bytes"):
                size = self._fs.size(self.path(number))
                if size is None:
                    continue
                fd = self._fs.open(self.path(number), os.O_RDWR)
                try:
                    for found in found_here:
                        length = min(found.length, size - found.offset)
                        if length > 0:
                            self._fs.pwrite(fd, os.urandom(length), found.offset)
                    with sync_errors("overwrite forgotten bytes"):
                        self._fs.fdatasync(fd)
                finally:
                    self._fs.close(fd)

    def worth_compacting(self) -> list[int]:
        """Packs in which nothing lives, or that are mostly waste; the one being written only when nothing lives."""
        return [
            number
            for number, pack in self._packs.items()
            if pack.end
            and (pack.live <= 0 or (pack.end - pack.live > MAX_WASTE * pack.end and not self._is_current(number)))
        ]

    def wasteful(self) -> list[int]:
        """Packs with any waste at all."""
        return [number for number, pack in self._packs.items() if pack.live < pack.end]

    def retire(self, number: int) -> None:
        """Take no more contents into a pack, because it is about to be emptied."""
        if self._is_current(number):
            self._close_current()
        self._packs[number].retired = True

    def remove(self, number: int) -> None:
        """Unlink a pack that the index does not name any more, durably."""
        if self._is_current(number):
            self._close_current()
        with storage_errors("remove a pack file"):
            if self._fs.size(self.path(number)) is not None:
                self._fs.unlink(self.path(number))
        self._packs.pop(number, None)
        self._torn.discard(number)
        self._sync_folder()

    def usage(self) -> tuple[int, int]:
        """Bytes in all packs, and how many of them live."""
        packs = list(self._packs.values())
        return sum(p.end for p in packs), sum(p.live for p in packs)

    def close(self) -> None:
        """Release the current pack. Idempotent."""
        self._close_current()

    def _is_current(self, number: int) -> bool:
        return self._current is not None and self._current[0] == number

    def _open_current(self) -> tuple[int, int]:
        if self._current is not None:
            if self._packs[self._current[0]].end < self._pack_bytes:
                return self._current
            self._close_current()
        roomy = (n for n, p in self._packs.items() if p.end < self._pack_bytes // 2 and not p.retired)
        number = next(roomy, None)
        created = number is None
        if number is None:
            number, self._next = self._next, self._next + 1
        with storage_errors("open a pack file"):
            fd = self._fs.open(self.path(number), os.O_RDWR | os.O_CREAT)
        self._packs.setdefault(number, _Pack())
        self._current = (number, fd)
        if created:
            self._sync_folder()
        return self._current

    def _close_current(self) -> None:
        if self._current is not None:
            fd, self._current = self._current[1], None
            with storage_errors("close a pack file"):
                self._fs.close(fd)

    def _cut_tails(self) -> None:
        for number in sorted(self._torn):
            with storage_errors("cut a pack file"):
                self._cut(number, self._packs[number].end)
            self._torn.discard(number)

    def _cut(self, number: int, end: int) -> None:
        fd = self._fs.open(self.path(number), os.O_RDWR)
        try:
            self._fs.truncate(fd, end)
            with sync_errors("cut a pack file"):
                self._fs.fsync(fd)
        finally:
            self._fs.close(fd)

    def _sync_folder(self) -> None:
        with sync_errors("change the folder of pack files"):
            self._fs.fsync_folder(str(self._folder))

    def path(self, number: int) -> str:
        """Where a pack lies."""
        return str(self._folder / f"{number:08d}{PACK_SUFFIX}")


def _number(name: str) -> int | None:
    stem = name.removesuffix(PACK_SUFFIX)
    return int(stem) if stem != name and stem.isascii() and stem.isdigit() and len(stem) == 8 else None
