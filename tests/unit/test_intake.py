"""The waiting room for blocks: whatever its disk does, it stays usable and says so with errors of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from support.block_dags import long_ids
from walytis_vault.adapters.walytis import block_ids, index_files, intake
from walytis_vault.adapters.walytis.block_index import BlockIndex
from walytis_vault.adapters.walytis.files import DatabaseLock
from walytis_vault.domain.errors import StorageError, StorageFullError


def test_a_damaged_index_of_blocks_is_our_error(tmp_path: Path) -> None:
    """A table that is gone, a closed database: no error of the library's leaves."""
    folder = tmp_path / "index"
    folder.mkdir()
    ids = long_ids([[], [0]])
    (folder / "2000.09.22_00.00.00.000000").write_bytes(index_files.encode(ids[0]))
    index = BlockIndex(tmp_path / "index.db", folder)
    index._db.execute("DROP TABLE leaves")
    with pytest.raises(StorageError):
        index.leaves()
    index.close()
    with pytest.raises(StorageError):
        index.long_id(block_ids.key_of(ids[1]))


def test_a_full_disk_is_told_as_such_and_the_lock_is_free_again() -> None:
    """The holder's error becomes ours on the way out, and whoever comes next gets in."""
    lock = DatabaseLock("try")
    with pytest.raises(StorageFullError), lock, lock:
        raise apsw.FullError("database or disk is full")
    with lock:
        pass


def test_a_statement_that_fails_leaves_no_transaction_open(tmp_path: Path) -> None:
    """A block that could not be put into the waiting room leaves no half of itself, and the next one fits."""
    room: Any = intake.Intake.__new__(intake.Intake)
    room._lock = DatabaseLock("wait")
    room._db = intake._open(tmp_path / "waiting.db")
    room._count = room._bytes = 0
    bad: Any = {b"p": object()}
    with pytest.raises(TypeError), room._lock:
        room._stage(b"k", "cid", b"file", bad)
    assert not room._db.in_transaction
    with room._lock:
        assert not room._waits(b"k")
        room._stage(b"k", "cid", b"file", {b"p": b"short"})
        assert room._waits(b"k")
