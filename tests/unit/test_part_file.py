"""The file of an incoming ciphertext: past the page cache where that works, and the same bytes where it does not."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from walytis_vault.adapters.storage import part_file
from walytis_vault.adapters.storage.part_file import SLOW_WRITES, PartFile
from walytis_vault.adapters.system import OsFileSystem

SIZE = 1 << 20
DIRECT = getattr(os, "O_DIRECT", 0)
pytestmark = pytest.mark.skipif(not DIRECT, reason="this system has no way past its page cache")


class Disk(OsFileSystem):
    """Takes writes past the cache as the test says; counts them."""

    def __init__(self, *, opens: bool = True, refuses: int = 0) -> None:
        self.opens, self.refuses, self.direct = opens, refuses, 0
        self._fds: set[int] = set()

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Whether the flag is taken does not hang on the file system that the test runs on."""
        if flags & DIRECT and not self.opens:
            raise OSError(errno.EINVAL, "no")
        fd = super().open(path, flags & ~DIRECT, mode)
        if flags & DIRECT:
            self._fds.add(fd)
        return fd

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Count."""
        if fd in self._fds:
            self.direct += 1
            if self.refuses:
                raise OSError(self.refuses, "no")
        super().pwrite(fd, data, offset)

    def close(self, fd: int) -> None:
        """Numbers are used again."""
        self._fds.discard(fd)
        super().close(fd)


def pages() -> memoryview:
    """A segment that begins at a page."""
    view = memoryview(mmap.mmap(-1, SIZE))
    view[:] = os.urandom(SIZE)
    return view


@pytest.mark.parametrize(
    ("disk", "direct"),
    [(Disk(), 2), (Disk(opens=False), 0), (Disk(refuses=errno.EINVAL), 1)],
    ids=["direct", "no such flag", "refused when writing"],
)
def test_the_bytes_are_the_same_on_every_disk(disk: Disk, direct: int, tmp_path: Path) -> None:
    """Whole pages go past the cache if the disk takes that, all else through it, and the file has all of it."""
    file, segments, tail = PartFile(disk, str(tmp_path / "part")), [pages(), pages()], os.urandom(1000)
    file.write(tail, 2 * SIZE)
    for number in (1, 0):
        file.write(segments[number], number * SIZE)
    file.write(memoryview(tail), 2 * SIZE)
    file.close()
    assert (tmp_path / "part").read_bytes() == bytes(segments[0]) + bytes(segments[1]) + tail
    assert disk.direct == direct


def test_the_real_disk_takes_it(tmp_path: Path) -> None:
    """With the calls of this system, whatever it supports, what was written is read."""
    file, segment = PartFile(OsFileSystem(), str(tmp_path / "part")), pages()
    file.write(b"behind", SIZE)
    file.write(segment, 0)
    file.write(bytes(segment)[::-1], 2 * SIZE)
    assert os.pread(file.fd, SIZE + 6, 0) == bytes(segment) + b"behind"
    file.close()


def test_a_slow_disk_gets_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some writes that took long the cache takes the rest."""
    monkeypatch.setattr(part_file, "SLOW_S", -1.0)
    disk = Disk()
    file = PartFile(disk, str(tmp_path / "part"))
    for number in range(2 * SLOW_WRITES):
        file.write(pages(), number * SIZE)
    assert disk.direct == SLOW_WRITES
    assert not file.direct
    file.close()


def test_other_errors_are_told(tmp_path: Path) -> None:
    """A full disk is not tried in another way."""
    file = PartFile(Disk(refuses=errno.ENOSPC), str(tmp_path / "part"))
    with pytest.raises(OSError, match="no"):
        file.write(pages(), 0)
    file.close()
