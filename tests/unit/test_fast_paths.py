"""Our replacements of upstream's slow paths give upstream's answers, on thousands of random chains."""

from __future__ import annotations

import os
import random
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import upstream_originals
from support.block_dags import OriginalChain, Shape, long_ids, shapes
from walytis_vault.adapters.walytis import ancestry, block_ids, index_files
from walytis_vault.adapters.walytis.block_index import BlockIndex
from walytis_vault.adapters.walytis.end_blocks import MOST, EndBlocks
from walytis_vault.domain.errors import StorageFullError, UntrustedInputError

FIRST_FILE = "2000.09.22_00.00.00.000000"
some = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
thousands = settings(some, max_examples=4000)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Upstream's own code."""
    return upstream_originals.load(Path(tmp_path_factory.mktemp("log")))


class Tables:
    """Look-ups as the index answers them, for a DAG in memory."""

    def __init__(self, ids: list[bytes]) -> None:
        self._parents = {
            block_ids.key_of(i): tuple(block_ids.key_of_short(p) for p in block_ids.parents_of(i)) for i in ids
        }
        self._heights: dict[bytes, int] = {}

    def parents(self, key: bytes) -> tuple[bytes, ...] | None:
        return self._parents.get(key)

    def height(self, key: bytes) -> int | None:
        return ancestry.height_of_block(key, self.parents, self._heights.get, self._heights.__setitem__)


def hold_remove_ancestors(originals: tuple[Any, Any], shape: Shape, data: st.DataObject) -> None:
    """Ask both for some blocks of a DAG."""
    ids = long_ids(shape)
    asked = data.draw(st.lists(st.sampled_from(ids), max_size=7))
    expected = originals[0].remove_ancestors(OriginalChain(ids), [bytearray(i) for i in asked])
    tables = Tables(ids)
    kept = ancestry.indices_without_ancestors([block_ids.key_of(i) for i in asked], tables.parents, tables.height)
    assert [bytearray(asked[at]) for at in kept] == expected


def hold_end_blocks(originals: tuple[Any, Any], shape: Shape, data: st.DataObject) -> None:
    """Let blocks arrive one by one on both."""
    ids = long_ids(shape)
    order = data.draw(linear_extensions(shape))
    tables, original = Tables(ids), OriginalChain(ids)
    by_key = {block_ids.key_of(i): i for i in ids}
    ends = EndBlocks(tables.parents, tables.height)
    theirs: list[Any] = []
    for number in order:
        key = block_ids.key_of(ids[number])
        ends.add(key, tables.parents(key) or (), own=data.draw(st.booleans()))
        theirs = originals[0].remove_ancestors(original, [*theirs, bytearray(ids[number])])
        if len(theirs) > MOST:
            return  # here ours are fewer
        assert [bytearray(by_key[key]) for key in ends.chosen()] == theirs


@some
@given(shape=shapes(), data=st.data())
def test_remove_ancestors_answers_as_upstream_does(
    originals: tuple[Any, Any], shape: Shape, data: st.DataObject
) -> None:
    """For any DAG and any list of its blocks (repeats, any order) the answer is upstream's, in upstream's order."""
    hold_remove_ancestors(originals, shape, data)


@some
@given(shape=shapes(max_blocks=14), data=st.data())
def test_end_blocks_follow_upstream_whatever_the_order_of_arrival(
    originals: tuple[Any, Any], shape: Shape, data: st.DataObject
) -> None:
    """Blocks that arrive in any order that has parents first leave the same end blocks as with upstream's code."""
    hold_end_blocks(originals, shape, data)


@pytest.mark.long
@pytest.mark.timeout(900)
@thousands
@given(shape=shapes(max_blocks=40), data=st.data())
def test_thousands_of_shapes_agree_with_upstream(originals: tuple[Any, Any], shape: Shape, data: st.DataObject) -> None:
    """The two properties above, on thousands of larger shapes."""
    hold_remove_ancestors(originals, shape, data)
    hold_end_blocks(originals, shape, data)


@st.composite
def linear_extensions(draw: st.DrawFn, shape: Shape) -> list[int]:
    """Orders of the blocks of a shape in which parents come before children."""
    chosen = random.Random(draw(st.integers(0, 2**32)))
    left, order = set(range(len(shape))), []
    while left:
        ready = sorted(number for number in left if not set(shape[number]) & left)
        number = chosen.choice(ready)
        left.remove(number)
        order.append(number)
    return order


@settings(max_examples=100, deadline=None)
@given(shape=shapes(), unknown=st.sets(st.integers(0, 23), max_size=5), data=st.data())
def test_unknown_parents_count_as_having_no_ancestors(shape: Shape, unknown: set[int], data: st.DataObject) -> None:
    """Where blocks are missing (upstream raises a TypeError then) the answer is that of the chain without them."""
    ids = long_ids(shape)
    known = [i for number, i in enumerate(ids) if number not in unknown]
    if not known:
        return
    asked = data.draw(st.lists(st.sampled_from(known), max_size=5))
    tables = Tables(known)
    kept = ancestry.indices_without_ancestors([block_ids.key_of(i) for i in asked], tables.parents, tables.height)

    def ancestors(key: bytes) -> set[bytes]:
        found: set[bytes] = set()
        front = list(tables.parents(key) or ())
        while front:
            parent = front.pop()
            if parent not in found:
                found.add(parent)
                front += tables.parents(parent) or ()
        return found

    everything = set().union(*(ancestors(block_ids.key_of(i)) for i in asked)) if asked else set()
    assert kept == [at for at, i in enumerate(asked) if block_ids.key_of(i) not in everything]


def test_a_chain_of_a_hundred_thousand_blocks_needs_no_recursion() -> None:
    """Height and ancestry of a long chain are found without recursion, and the search below a new leaf is short."""
    keys = [number.to_bytes(16, "big") for number in range(100_000)]
    parents: dict[bytes, tuple[bytes, ...]] = {key: (keys[at - 1],) if at else () for at, key in enumerate(keys)}
    heights: dict[bytes, int] = {}
    looked_up: list[bytes] = []

    def parents_of(key: bytes) -> tuple[bytes, ...] | None:
        looked_up.append(key)
        return parents.get(key)

    def height_of(key: bytes) -> int | None:
        return ancestry.height_of_block(key, parents.get, heights.get, heights.__setitem__)

    assert height_of(keys[-1]) == 99_999
    assert ancestry.indices_without_ancestors([keys[-2], keys[-1]], parents_of, height_of) == [1]
    assert len(looked_up) < 10


def records_of(records: Any, folder: Path) -> Any:
    """Upstream's BlockRecords on a folder, with nothing behind it."""

    class Records(records.BlockRecords):  # type: ignore[misc]
        name = "original"

        def __init__(self) -> None:
            self.known_blocks_index_dir = str(folder)
            super().__init__()
            self.load_block_records(ensure_ipfs_pinned=False)

        def check_alive(self) -> None:
            pass

        def read_block(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError

    return Records()


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), splits=st.lists(st.integers(0, 24), max_size=3), data=st.data())
def test_the_index_finds_what_upstream_finds(
    originals: tuple[Any, Any],
    tmp_path_factory: pytest.TempPathFactory,
    shape: Shape,
    splits: list[int],
    data: st.DataObject,
) -> None:
    """Over the same index files our look-up returns upstream's long ids, and the walk returns upstream's list."""
    folder = tmp_path_factory.mktemp("chain") / "index"
    folder.mkdir()
    ids = long_ids(shape)
    files = [FIRST_FILE]
    parts: dict[str, list[bytes]] = {FIRST_FILE: []}
    for number, long_id in enumerate(ids):
        if number in splits and number > 0:
            time = datetime(2026, 11, 22, 12, 0, number // 1000 % 60, number % 1000, tzinfo=UTC)
            files.append(time.strftime("%Y.%m.%d_%H.%M.%S.%f"))
            parts[files[-1]] = []
        parts[files[-1]].append(long_id)
    for name, part in parts.items():
        (folder / name).write_bytes(b"".join(index_files.encode(long_id) for long_id in part))
    original = records_of(originals[1], folder)
    index = BlockIndex(folder.parent / "index.db", folder)
    for long_id in ids:
        short = bytearray(block_ids.short_of(long_id))
        assert original.find_block(short) == index.long_id(block_ids.key_of(long_id)) == long_id
    listed = [bytes(i) for name, _ in original.index_files_times for i in original.list_ids(name)]
    assert list(index.walk()) == listed == ids
    children = {parent for parents in shape for parent in parents}
    assert sorted(index.leaves()) == sorted(i for number, i in enumerate(ids) if number not in children)
    tables = Tables(ids)
    assert [index.height(block_ids.key_of(i)) for i in ids] == [tables.height(block_ids.key_of(i)) for i in ids]
    assert data is not None
    index.close()


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), cut=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_torn_file_keeps_its_whole_records(
    tmp_path_factory: pytest.TempPathFactory, shape: Shape, cut: float, seed: int
) -> None:
    """Cut anywhere, an index file is repaired to exactly the records that were whole, and upstream can append again."""
    path = tmp_path_factory.mktemp("torn") / FIRST_FILE
    ids = long_ids(shape, seed)
    pieces = [index_files.encode(long_id) for long_id in ids]
    data = b"".join(pieces)
    at = int(cut * len(data))
    path.write_bytes(data[:at])
    whole, total = 0, 0
    while whole < len(pieces) and total + len(pieces[whole]) <= at:
        total += len(pieces[whole])
        whole += 1
    assert index_files.is_whole(path) == (total == at)
    assert index_files.repair(path) == at - total
    assert [record.long_id for record in index_files.records(path)] == ids[:whole]


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), data=st.data())
def test_an_overwritten_record_costs_no_other(
    tmp_path_factory: pytest.TempPathFactory, shape: Shape, data: st.DataObject
) -> None:
    """After damage inside one record every other record survives the repair."""
    path = tmp_path_factory.mktemp("damaged") / FIRST_FILE
    ids = long_ids(shape)
    pieces = [index_files.encode(long_id) for long_id in ids]
    victim = data.draw(st.integers(0, len(pieces) - 1))
    start = sum(len(piece) for piece in pieces[:victim])
    damaged = bytearray(b"".join(pieces))
    damaged[start : start + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    index_files.repair(path)
    kept = [record.long_id for record in index_files.records(path)]
    assert kept == ids[:victim] + ids[victim + 1 :]


@given(junk=st.binary(max_size=3000))
def test_junk_in_an_index_file_is_our_error_or_nothing(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Reading any bytes as an index file gives records or our error, never another exception."""
    path = tmp_path_factory.mktemp("junk") / FIRST_FILE
    path.write_bytes(junk)
    try:
        for record in index_files.records(path):
            assert record.end <= len(junk)
    except UntrustedInputError:
        pass
    index_files.repair(path)
    assert index_files.is_whole(path)


def test_a_record_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up inside a record: the error says so, and later records stand behind whole ones."""
    ids = long_ids([[], [0], [1]])
    path = tmp_path / FIRST_FILE
    index_files.append(path, ids[0])
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:300]))
        with pytest.raises(StorageFullError):
            index_files.append(path, ids[1])
    assert index_files.is_whole(path)
    assert index_files.append(path, ids[2]) == len(index_files.encode(ids[0]))
    assert [record.long_id for record in index_files.records(path)] == [ids[0], ids[2]]


def test_the_index_follows_a_file_that_grows(tmp_path: Path) -> None:
    """Records that others append are found by looking at the tails, and our own additions are not counted twice."""
    folder = tmp_path / "index"
    folder.mkdir()
    ids = long_ids([[], [0], [1], [2], [3]])
    path = folder / FIRST_FILE
    path.write_bytes(index_files.encode(ids[0]))
    index = BlockIndex(tmp_path / "index.db", folder)
    with path.open("ab") as file:
        file.write(index_files.encode(ids[1]))
    assert index.sync() == [block_ids.key_of(ids[1])]
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(index_files.encode(ids[2]))
    index.add(ids[2], FIRST_FILE, offset, stored=True)
    assert index.sync() == []
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(index_files.encode(ids[3]) + index_files.encode(ids[4]))
    index.sync()
    index.add(ids[3], FIRST_FILE, offset, stored=True)
    assert len(index) == 5
    assert index.leaves() == [ids[4]]


def test_an_index_that_was_not_saved_is_completed_from_the_files(tmp_path: Path) -> None:
    """A second index on the same files, as after a kill with nothing committed, knows the same."""
    folder = tmp_path / "index"
    folder.mkdir()
    ids = long_ids([[], [0], [0], [1, 2]])
    (folder / FIRST_FILE).write_bytes(b"".join(index_files.encode(i) for i in ids))
    first = BlockIndex(tmp_path / "a.db", folder)
    first.flush()
    (tmp_path / "b.db").write_bytes(b"not a database" * 100)
    second = BlockIndex(tmp_path / "b.db", folder)
    assert list(first.walk()) == list(second.walk()) == ids
    assert first.leaves() == second.leaves() == [ids[3]]


def test_the_index_may_be_used_from_many_threads(tmp_path: Path) -> None:
    """Threads that add and look up at once lose nothing."""
    folder = tmp_path / "index"
    folder.mkdir()
    ids = long_ids([[], *([max(0, n - 3)] for n in range(1, 400))])
    path = folder / FIRST_FILE
    path.touch()
    index = BlockIndex(tmp_path / "index.db", folder)
    lock = threading.Lock()

    def work(part: list[bytes]) -> None:
        for long_id in part:
            with lock:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND)
                offset = os.lseek(fd, 0, os.SEEK_END)
                os.write(fd, index_files.encode(long_id))
                os.close(fd)
            index.add(long_id, FIRST_FILE, offset, stored=True)
            assert index.long_id(block_ids.key_of(long_id)) == long_id

    threads = [threading.Thread(target=work, args=(ids[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index) == 400
    assert sorted(index.walk()) == sorted(ids)
