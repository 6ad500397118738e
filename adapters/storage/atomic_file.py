"""Small files that are replaced as a whole: temp file in the same folder, fsync, rename, fsync folder.

The old file's bytes are overwritten after the rename, so that an old wrapped key does not linger in free
blocks of a plain disk; so are those of a temp file that did not make it. A reader sees the old file or the new
one, never a mixture.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from walytis_vault.adapters.storage.failures import storage_errors, sync_errors
from walytis_vault.domain.errors import StorageError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ports import FileSystem

TEMP_SUFFIX: Final = ".tmp"


def replace_file(fs: FileSystem, path: Path, data: bytes) -> None:
    """Write `data` to `path` durably, all or nothing, mode 0600.

    Raises:
        StorageFullError, StorageError: the old file is still there.
        SyncFailedError: unknown which of the two is there after a power cut.
    """
    temp = path.with_name(f"{path.name}{TEMP_SUFFIX}")
    old = _open_old(fs, path)
    try:
        try:
            _write_temp(fs, temp, data)
            fault("replace.after_temp")
            with storage_errors(f"replace {path.name}"):
                fs.rename(str(temp), str(path))
        except StorageError:
            _discard(fs, temp)
            raise
        fault("replace.after_rename")
        with sync_errors(f"replace {path.name}"):
            fs.fsync_folder(str(path.parent))
        if old is not None:
            _wipe(fs, old)
    finally:
        if old is not None:
            with storage_errors(f"close {path.name}"):
                fs.close(old[0])


def read_file(fs: FileSystem, path: Path, *, limit: int) -> bytes | None:
    """Return a small file's bytes, None when there is none. Raises StorageError above `limit` bytes."""
    with storage_errors(f"read {path.name}"):
        size = fs.size(str(path))
        if size is None:
            return None
        if size > limit:
            raise StorageError(f"{path.name} has {size} bytes, which cannot be: restore it from a backup")
        fd = fs.open(str(path), os.O_RDONLY)
        try:
            return fs.pread(fd, size, 0)
        finally:
            fs.close(fd)


def sweep_temp_files(fs: FileSystem, folder: Path) -> None:
    """Overwrite and unlink what a crash left half replaced in a folder. Raises StorageError."""
    with storage_errors("look for unfinished files"):
        left = [name for name in fs.listdir(str(folder)) if name.endswith(TEMP_SUFFIX)]
    for name in left:
        remove_file(fs, folder / name)


def remove_file(fs: FileSystem, path: Path) -> None:
    """Overwrite, then unlink a small file durably. Nothing happens when there is none."""
    old = _open_old(fs, path)
    if old is None:
        return
    try:
        _wipe(fs, old)
    finally:
        with storage_errors(f"close {path.name}"):
            fs.close(old[0])
    with storage_errors(f"remove {path.name}"):
        fs.unlink(str(path))
    with sync_errors(f"remove {path.name}"):
        fs.fsync_folder(str(path.parent))


def _write_temp(fs: FileSystem, temp: Path, data: bytes) -> None:
    with storage_errors(f"write {temp.name}"):
        fd = fs.open(str(temp), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            fs.pwrite(fd, data, 0)
            with sync_errors(f"write {temp.name}"):
                fs.fsync(fd)
        finally:
            fs.close(fd)


def _discard(fs: FileSystem, temp: Path) -> None:
    """Overwrite and unlink, or at least unlink. The caller has an error to raise; a start sweeps what is left."""
    with contextlib.suppress(StorageError):
        remove_file(fs, temp)
    with contextlib.suppress(StorageError), storage_errors(f"remove {temp.name}"):
        if fs.size(str(temp)) is not None:
            fs.unlink(str(temp))


def _open_old(fs: FileSystem, path: Path) -> tuple[int, int] | None:
    with storage_errors(f"open {path.name}"):
        size = fs.size(str(path))
        return None if size is None else (fs.open(str(path), os.O_RDWR), size)


def _wipe(fs: FileSystem, old: tuple[int, int]) -> None:
    fd, size = old
    with storage_errors("overwrite an old key file"):
        fs.pwrite(fd, os.urandom(size), 0)
    with sync_errors("overwrite an old key file"):
        fs.fdatasync(fd)
