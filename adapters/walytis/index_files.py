"""Upstream's index files: which block ids a chain has, appended in order of arrival.

A record is `length in base 255 || 0x00 || long id || 0x000000000000`. Upstream reads them byte by byte and gives up
on a chain whose last record was torn by a crash; here they are read in pieces, checked, and cut back to their
last whole record before upstream opens them (security.md U7).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from walytis_vault.adapters.walytis.block_ids import MAX_LONG_ID, base255, to_base255
from walytis_vault.adapters.walytis.files import replace_file, storage_error
from walytis_vault.domain.errors import StorageError, UntrustedInputError

END: Final = b"\0\0\0\0\0\0"
MAX_LENGTH_DIGITS: Final = 4
PIECE: Final = 1 << 20


class Record(NamedTuple):
    """One recorded id: where its long id lies in the file, and where the record ends."""

    long_id: bytes
    offset: int
    end: int


def encode(long_id: bytes) -> bytes:
    """A record as upstream writes it."""
    return to_base255(len(long_id)) + b"\0" + long_id + END


def names(folder: Path) -> list[str]:
    """The index files, oldest first."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise storage_error(e, f"list {folder}") from e


def records(path: Path, start: int = 0) -> Iterator[Record]:
    """The whole records from an offset on, which must be where a record starts. Stops before a torn one.

    Holds a piece of the file of about a MiB.

    Raises:
        StorageError: the file cannot be read.
        UntrustedInputError: what stands at a record's place is no record, torn or whole.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            held, base = b"", start
            while piece := file.read(PIECE):
                held += piece
                at = 0
                while (record := _record(held, at)) is not None:
                    long_id, after = record
                    yield Record(long_id, base + after - len(END) - len(long_id), base + after)
                    at = after
                held, base = held[at:], base + at
    except OSError as e:
        raise storage_error(e, f"read {path}") from e


def _record(held: bytes, at: int) -> tuple[bytes, int] | None:
    """The record at a place and its end; None when it is not all there yet."""
    mark = held.find(b"\0", at, at + MAX_LENGTH_DIGITS + 1)
    if mark < 0:
        if len(held) - at > MAX_LENGTH_DIGITS:
            raise UntrustedInputError("an index file has something else where a record should start")
        return None
    length = base255(held[at:mark])
    if length > MAX_LONG_ID:
        raise UntrustedInputError(f"an index file has a record of {length} bytes")
    end = mark + 1 + length
    if held[end : end + len(END)] != END:
        if len(held) >= end + len(END):
            raise UntrustedInputError("an index file has a record without its end mark")
        return None
    return held[mark + 1 : end], end + len(END)


def append(path: Path, long_id: bytes) -> int:
    """Append one record, all of it or nothing; return the offset at which it starts.

    Raises:
        StorageFullError, StorageError: the file is as it was.
    """
    record = encode(long_id)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            offset = os.lseek(fd, 0, os.SEEK_END)
            try:
                if os.write(fd, record) != len(record):  # the disk filled up in the middle
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(fd, offset)  # what comes later must not stand behind half a record
                raise
        finally:
            os.close(fd)
    except OSError as e:
        raise storage_error(e, f"write {path}") from e
    return offset


def read_at(path: Path, offset: int, size: int) -> bytes:
    """A recorded id. Raises StorageError when the file does not have it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, size, offset)
        finally:
            os.close(fd)
    except OSError as e:
        raise storage_error(e, f"read {path}") from e
    if len(data) != size:
        raise StorageError(f"{path} is shorter than its index says: restart the node to repair it")
    return data


def repair(path: Path) -> int:
    """Make a damaged file readable again: keep every whole record, drop what is torn or overwritten.

    The blocks of dropped records were never acknowledged (a torn tail), or come back from peers.

    Returns:
        Bytes that were dropped.
    Raises:
        StorageError: the file cannot be read or replaced. It is then as it was.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise storage_error(e, f"read {path}") from e
    kept, at = bytearray(), 0
    while at < len(data):
        try:
            record = _record(data, at)
        except UntrustedInputError:
            record = None
        if record is not None:
            kept += data[at : record[1]]
            at = record[1]
            continue
        mark = data.find(END, at + 1)
        at = len(data) if mark < 0 else mark + len(END)
        while at < len(data) and data[at] == 0:
            at += 1  # a genesis block's id ends with zeros of its own
    if len(kept) != len(data):
        replace_file(path, bytes(kept))
    return len(data) - len(kept)


def is_whole(path: Path, start: int = 0) -> bool:
    """Whether the file consists of whole records from an offset on."""
    end = start
    try:
        for record in records(path, start):
            end = record.end
        return end == path.stat().st_size
    except (UntrustedInputError, OSError):
        return False
