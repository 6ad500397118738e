"""Local files as source and target of contents, with errors of ours and nothing half-done left behind.

A source that changes its size while it is read is refused. A target appears under its name only when it is
complete and durable; before that it has no name at all where the system can (Linux, most file systems), so that
nothing is left when the program is killed. Elsewhere it is called `.NAME.….part`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from walytis_vault.domain.errors import MisuseError, StorageError, StorageFullError, TransportError

READ_BYTES = 1 << 20
_ADVISE = 8 << 20
_UNNAMED: int = getattr(os, "O_TMPFILE", 0)


class Source:
    """Bytes to publish: given, in a file, or from an open file object. Owned by one thread.

    Args:
        data: bytes-like, a path, or a binary file object (read from where it stands).
    Raises:
        MisuseError: no such file, a folder, not readable, or not a source at all.
    """

    def __init__(self, data: object) -> None:
        self.size: int | None = None
        self._view: memoryview | None = None
        self._own = False
        self._start = 0
        self._done = 0
        self._name = "the data"
        if isinstance(data, bytes | bytearray | memoryview):
            # A private copy of what may change: a retry must send the same bytes.
            self._view = memoryview(data if isinstance(data, bytes) else bytes(data))
            self.size = len(self._view)
        elif isinstance(data, os.PathLike):
            self._file: BinaryIO = self._open(Path(data))
            self._own = True
        elif callable(getattr(data, "read", None)):
            self._file = data  # type: ignore[assignment]
            self._measure()
        else:
            hint = ": encode it, or pass a pathlib.Path" if isinstance(data, str) else ""
            raise MisuseError(f"publish takes bytes, a path or a binary file, not {type(data).__name__}{hint}")

    def _open(self, path: Path) -> BinaryIO:
        self._name = str(path)
        try:
            file = path.open("rb", buffering=0)
        except IsADirectoryError as e:
            raise MisuseError(f"{path} is a folder: publish its files one by one") from e
        except FileNotFoundError as e:
            raise MisuseError(f"there is no file {path}") from e
        except OSError as e:
            raise MisuseError(f"cannot read {path}: {e.strerror or e}") from e
        info = os.fstat(file.fileno())
        if stat.S_ISREG(info.st_mode):
            self.size = info.st_size
        return file

    def _measure(self) -> None:
        """Find out how much an open file has, when it can tell."""
        if isinstance(self._file, io.TextIOBase):
            raise MisuseError("the file is open as text: open it in binary mode ('rb')")
        try:
            if self._file.seekable():
                self._start = self._file.tell()
                self.size = max(0, self._file.seek(0, os.SEEK_END) - self._start)
                self._file.seek(self._start)
        except (OSError, ValueError, AttributeError):
            self.size = None

    def read(self) -> bytes | memoryview:
        """The next piece, up to 1 MiB; empty at the end.

        Raises:
            StorageError: the file failed, or its size changed while it was read.
        """
        if self._view is not None:
            piece: bytes | memoryview = self._view[self._done : self._done + READ_BYTES]
        else:
            try:
                got = self._file.read(READ_BYTES)
            except (OSError, ValueError) as e:
                raise StorageError(f"cannot read {self._name}: {e}") from e
            if got is None:
                raise MisuseError("the file is open in non-blocking mode: publish reads from blocking files")
            if not isinstance(got, bytes | bytearray | memoryview):
                raise MisuseError("the file gives text: open it in binary mode ('rb')")
            piece = bytes(got) if isinstance(got, bytearray) else got
        self._done += len(piece)
        if self.size is not None and (self._done > self.size or (not len(piece) and self._done < self.size)):
            raise StorageError(f"{self._name} changed its size while it was read: nothing was published")
        return piece

    def read_all(self) -> bytes:
        """All of a small source. Raises as `read`."""
        pieces = []
        while len(piece := self.read()):
            pieces.append(bytes(piece))
        return b"".join(pieces)

    def rewind(self) -> None:
        """Go back to the first byte. Raises TransportError when the source cannot."""
        self._done = 0
        if self._view is not None:
            return
        try:
            self._file.seek(self._start)
        except (OSError, ValueError, AttributeError) as e:
            raise TransportError(
                "the connection was lost and the source cannot be read again: nothing was published, publish it again"
            ) from e

    def close(self) -> None:
        """Close what was opened here. Idempotent."""
        if self._own:
            self._file.close()


class Target:
    """Where a content goes: a path or a binary file. Owned by one thread.

    Raises:
        MisuseError: the path is a folder, or `to` is neither. StorageError: it cannot be written.
    """

    def __init__(self, to: object) -> None:
        self._path: Path | None = None
        self._temporary: Path | None = None
        self._written = 0
        self._advised = 0
        if isinstance(to, os.PathLike):
            self._path = path = Path(to)
            if path.is_dir():
                raise MisuseError(f"{path} is a folder: name the file that the content shall go to")
            if path.exists() and not path.is_file():
                self._file: BinaryIO = _guard_open(path, os.O_WRONLY)
                self._path = None
                self._own = True
                return
            self._own = True
            unnamed = _open_unnamed(path.parent)
            if unnamed is not None:
                self._file = unnamed
            else:
                self._temporary = _part(path)
                self._file = _guard_open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        elif callable(getattr(to, "write", None)) and not isinstance(to, io.TextIOBase):
            self._file = to  # type: ignore[assignment]
            self._own = False
        else:
            raise MisuseError(f"`to` is a path or a binary file, not {type(to).__name__}")

    def write(self, data: memoryview) -> None:
        """Write all of `data`. Raises StorageError, StorageFullError."""
        self._written += len(data)
        try:
            while len(data):
                wrote = self._file.write(data)
                if wrote is None or wrote >= len(data):
                    break
                data = data[wrote:]
            if self._path is not None and self._written - self._advised >= _ADVISE:
                # Has the kernel begin to write to disk, so that the fsync at the end has little left to wait for.
                os.posix_fadvise(self._file.fileno(), self._advised, _ADVISE, os.POSIX_FADV_DONTNEED)
                self._advised += _ADVISE
        except (OSError, ValueError) as e:
            raise _storage_error("cannot write the content", e) from e

    def finish(self) -> None:
        """Make it durable and let it appear under its name. Raises StorageError."""
        try:
            self._file.flush()
            if not self._own:
                return
            if self._path is not None:
                os.fsync(self._file.fileno())
                self._appear(self._path)
            self._file.close()
        except (OSError, ValueError) as e:
            raise _storage_error("cannot write the content", e) from e

    def _appear(self, path: Path) -> None:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._temporary is None and not _link(self._file, folder, path.name):
                # Nothing replaces a file by one without a name. For a moment it has one, and is complete.
                self._temporary = _part(path)
                _link(self._file, folder, self._temporary.name)
            if self._temporary is not None:
                os.replace(self._temporary, path)
                self._temporary = None
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Leave nothing behind. Idempotent; does nothing after `finish`."""
        with contextlib.suppress(OSError):
            if self._own:
                self._file.close()
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")


def _open_unnamed(folder: Path) -> BinaryIO | None:
    """A file that vanishes with its descriptor unless it is linked; None where that cannot be."""
    if not _UNNAMED:
        return None
    try:
        fd = os.open(folder, _UNNAMED | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError:
        return None  # whatever it is, opening a file with a name tells
    if not os.path.exists(_by_descriptor(fd)):
        os.close(fd)
        return None
    return os.fdopen(fd, "wb", buffering=0)


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _link(file: BinaryIO, folder: int, name: str) -> bool:
    """Give it a name in a folder; False when that is taken."""
    try:
        # With a descriptor of the folder Python follows the link in /proc, which is what makes this work.
        os.link(_by_descriptor(file.fileno()), name, dst_dir_fd=folder)
    except FileExistsError:
        return False
    return True


def _guard_open(path: Path, flags: int) -> BinaryIO:
    try:
        # 0666 under the umask, as any program's output: the file is the caller's own.
        return os.fdopen(os.open(path, flags | os.O_CLOEXEC, 0o666), "wb", buffering=0)
    except OSError as e:
        raise _storage_error(f"cannot write {path}", e) from e


def _storage_error(what: str, error: OSError | ValueError) -> StorageError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"{what}: no space left")
    return StorageError(f"{what}: {error}")
