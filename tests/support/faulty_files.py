"""Disks that fail on purpose: the file-system port and SQLite's own file calls, over the real file system.

`FaultPlan` decides for both which call fails and how; a full disk is simulated by counting the bytes of a
folder. Everything that does not fail is really done.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from walytis_vault.adapters.system import OsFileSystem


class FaultPlan:
    """Counts the calls that change the disk and fails one of them, or all that find the disk full."""

    def __init__(self) -> None:
        """Begin without faults."""
        self.calls: list[str] = []
        self.failed: list[str] = []
        self.on_call: Callable[[str], None] | None = None
        self.real_syncs = True
        """False where only kills are played, which lose nothing that was written: then syncs are only counted."""
        self._fail_at: int | None = None
        self._fail_name: str | None = None
        self._error = 0
        self._capacity: tuple[Path, int] | None = None
        self._lock = threading.Lock()

    def fail_call(self, number: int, error: int) -> None:
        """Let the `number`-th call from now on (0 is the next) fail with this errno, once."""
        with self._lock:
            self.calls.clear()
            self.failed.clear()
            self._fail_at, self._error = number, error

    def fail_next(self, call: str, error: int) -> None:
        """Let the next call of this name fail with this errno, once."""
        with self._lock:
            self.failed.clear()
            self._fail_name, self._error = call, error

    def count_only(self) -> None:
        """Fail nothing; start counting anew."""
        with self._lock:
            self.calls.clear()
            self.failed.clear()
            self._fail_at = None
            self._fail_name = None
            self._capacity = None

    def full_beyond(self, folder: Path, free: int) -> None:
        """From now on the files in `folder` may grow by `free` bytes altogether; removing some gives room."""
        self._capacity = (folder, _used(folder) + free)

    def check(self, call: str, growth: int = 0) -> None:
        """Note one call; raises OSError when it shall fail."""
        with self._lock:
            number = len(self.calls)
            self.calls.append(call)
            if self.on_call is not None:
                self.on_call(call)
            if number == self._fail_at or call == self._fail_name:
                self._fail_name = None
                self.failed.append(call)
                raise OSError(self._error, os.strerror(self._error))
            if growth > 0 and self._capacity is not None:
                folder, capacity = self._capacity
                if _used(folder) + growth > capacity:
                    self.failed.append(call)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


class FaultyFileSystem(OsFileSystem):
    """`OsFileSystem` whose changing calls ask the plan first."""

    def __init__(self, plan: FaultPlan) -> None:
        """Bind to a plan."""
        self._plan = plan

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """See the port."""
        if flags & os.O_CREAT and not os.path.exists(path):
            self._plan.check("create", growth=1)
        return super().open(path, flags, mode)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """See the port."""
        self._plan.check("pwrite", growth=offset + len(data) - os.fstat(fd).st_size)
        super().pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        """See the port."""
        self._plan.check("fsync")
        if self._plan.real_syncs:
            super().fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """See the port."""
        self._plan.check("fdatasync")
        if self._plan.real_syncs:
            super().fdatasync(fd)

    def fsync_folder(self, path: str) -> None:
        """See the port."""
        self._plan.check("fsync_folder")
        if self._plan.real_syncs:
            super().fsync_folder(path)

    def rename(self, source: str, target: str) -> None:
        """See the port."""
        self._plan.check("rename")
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        """See the port."""
        self._plan.check("unlink")
        super().unlink(path)

    def truncate(self, fd: int, size: int) -> None:
        """See the port."""
        self._plan.check("truncate")
        super().truncate(fd, size)


class WatchingFileSystem(FaultyFileSystem):
    """Knows what a power cut would still take away: data that was not synced, names whose folder was not.

    Use with `faulty_sqlite` and `plan.on_call`: when SQLite writes, everything before must be durable.
    """

    def __init__(self, plan: FaultPlan) -> None:
        """Watch from here on."""
        super().__init__(plan)
        self.violations: list[str] = []
        self._dirty_files: set[int] = set()
        self._dirty_folders: set[str] = set()
        plan.on_call = self._before_index

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """See the port."""
        if flags & os.O_CREAT and not os.path.exists(path):
            self._dirty_folders.add(os.path.dirname(path))
        return super().open(path, flags, mode)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """See the port."""
        super().pwrite(fd, data, offset)
        self._dirty_files.add(os.fstat(fd).st_ino)

    def fsync(self, fd: int) -> None:
        """See the port."""
        super().fsync(fd)
        self._dirty_files.discard(os.fstat(fd).st_ino)

    def fdatasync(self, fd: int) -> None:
        """See the port."""
        super().fdatasync(fd)
        self._dirty_files.discard(os.fstat(fd).st_ino)

    def fsync_folder(self, path: str) -> None:
        """See the port."""
        super().fsync_folder(path)
        self._dirty_folders.discard(path)

    def rename(self, source: str, target: str) -> None:
        """See the port."""
        if os.stat(source).st_ino in self._dirty_files:
            self.violations.append(f"{os.path.basename(source)} was renamed before its fsync")
        super().rename(source, target)
        self._dirty_folders.add(os.path.dirname(target))

    def unlink(self, path: str) -> None:
        """See the port."""
        self._dirty_files.discard(os.stat(path).st_ino)
        super().unlink(path)
        self._dirty_folders.add(os.path.dirname(path))

    def assert_durable(self) -> None:
        """Nothing that was done could be lost."""
        assert not self.violations
        assert not self._dirty_files
        assert not self._dirty_folders

    def _before_index(self, call: str) -> None:
        if call == "sqlite write" and (self._dirty_files or self._dirty_folders):
            self.violations.append("the index was written before its files were durable")


@contextmanager
def faulty_sqlite(plan: FaultPlan) -> Iterator[None]:
    """While this lasts, databases opened by this process write and sync as the plan says."""
    vfs = _FaultyVfs(plan)
    try:
        yield
    finally:
        vfs.unregister()


class _FaultyVfs(apsw.VFS):
    def __init__(self, plan: FaultPlan) -> None:
        super().__init__("faulty", base="", makedefault=True)
        self._plan = plan

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _FaultyFile(self._plan, name, flags)


class _FaultyFile(apsw.VFSFile):
    def __init__(self, plan: FaultPlan, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._plan = plan
        self._size = super().xFileSize

    def xWrite(self, data: bytes, offset: int) -> None:
        self._guard("sqlite write", growth=offset + len(data) - self._size())
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._guard("sqlite sync", full=apsw.IOError)  # SQLite's own file layer tells nothing else of a failed fsync
        if self._plan.real_syncs:
            super().xSync(flags)

    def _guard(self, call: str, growth: int = 0, full: type[Exception] = apsw.FullError) -> None:
        try:
            self._plan.check(call, growth)
        except OSError as e:
            kind = full if e.errno == errno.ENOSPC else apsw.IOError
            raise kind(e.strerror) from e
