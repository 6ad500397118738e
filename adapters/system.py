"""The real clock, randomness and file system, behind the ports of the domain.

Nothing here decides anything: it only makes the calls. Errors of the file system stay OSError; the adapters
that use it convert them (see adapters/storage/failures.py).
"""

from __future__ import annotations

import os
import time


class SystemClock:
    """Implements `domain.ports.Clock`."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 (UTC)."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()


class SystemRandomness:
    """Implements `domain.ports.Randomness` with the kernel's generator."""

    def token(self, size: int) -> bytes:
        """Return `size` bytes fit for keys."""
        return os.urandom(size)


class OsFileSystem:
    """Implements `domain.ports.FileSystem` with the calls of the operating system."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """os.open with O_CLOEXEC."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        """os.close."""
        os.close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes at `offset`; shorter only at the end of the file."""
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def fsync(self, fd: int) -> None:
        """Make data and metadata durable."""
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Make data, and the metadata needed to read it, durable."""
        os.fdatasync(fd)

    def fsync_folder(self, path: str) -> None:
        """Make creations, renames and removals in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: str, target: str) -> None:
        """Atomic replace."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend a file."""
        os.ftruncate(fd, size)

    def makedirs(self, path: str) -> None:
        """Create a folder (mode 0700) and its parents, if missing."""
        os.makedirs(path, mode=0o700, exist_ok=True)

    def listdir(self, path: str) -> list[str]:
        """Names in a folder, sorted."""
        return sorted(os.listdir(path))

    def size(self, path: str) -> int | None:
        """Size of a file, None when there is none."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None

    def free_bytes(self, path: str) -> int:
        """What may still be written to the disk that a path is on."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize
