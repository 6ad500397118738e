"""Contents of any size that are nowhere as a whole: a source that makes its bytes, a sink that hashes them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

_PIECE = hashlib.shake_256(b"a piece of an endless source").digest(1 << 20)


class Endless(io.RawIOBase):
    """A binary file of `size` bytes, made while it is read. Its `digest` is that of what was read."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._at = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of what was read."""
        return self._hash.hexdigest()

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes, each MiB different from the others."""
        left = self._size - self._at
        wanted = min(left, len(_PIECE)) if size < 0 else min(left, size, len(_PIECE))
        data = self._at.to_bytes(16, "big")[:wanted] + _PIECE[: max(0, wanted - 16)]
        self._at += wanted
        self._hash.update(data)
        return data


class Sink(io.RawIOBase):
    """A binary file that keeps only the hash."""

    def __init__(self) -> None:
        super().__init__()
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of what was written."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: object) -> int:
        """Take the bytes."""
        view = memoryview(data)  # type: ignore[arg-type]
        self._hash.update(view)
        return len(view)


def peak_kib(pid: str) -> int:
    """The highest resident size of a process so far, in KiB; `self` is this one."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no such process")
