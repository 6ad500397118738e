"""The next block stands on few blocks and on the right ones, whatever strangers put on the chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis import ancestry, block_ids
from walytis_vault.adapters.walytis.end_blocks import MOST, EndBlocks
from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.events import to_dcb
from walytis_vault.domain.ports import BlockRef


class Dag:
    """A chain of keys alone."""

    def __init__(self) -> None:
        self.parents: dict[bytes, tuple[bytes, ...]] = {}
        self._heights: dict[bytes, int] = {}
        self.ends = EndBlocks(self.parents.get, self._height)

    def add(self, name: str, *parents: str, own: bool = False) -> None:
        """A block comes."""
        self.parents[name.encode()] = tuple(p.encode() for p in parents)
        self.ends.add(name.encode(), self.parents[name.encode()], own=own)

    def chosen(self) -> list[str]:
        """Names of what the next block would stand on."""
        return [key.decode() for key in self.ends.chosen()]

    def _height(self, key: bytes) -> int | None:
        return ancestry.height_of_block(key, self.parents.get, self._heights.get, self._heights.__setitem__)


def test_a_flood_of_siblings_pushes_out_neither_the_own_block_nor_what_stands_on_it() -> None:
    """However many siblings come, few are chosen, and the last block made here is below one of them."""
    dag = Dag()
    dag.add("genesis")
    dag.add("own", "genesis", own=True)
    for number in range(500):
        dag.add(f"junk {number}", "genesis")
    assert len(dag.chosen()) == MOST
    assert "own" in dag.chosen()
    dag.add("above", "own")
    for number in range(500, 1000):
        dag.add(f"junk {number}", "genesis")
    assert "above" in dag.chosen()
    assert "own" not in dag.chosen()


def test_what_the_log_names_is_chosen_and_nothing_else() -> None:
    """Named blocks are built on, less their ancestors and unknown ones; our own next block takes their place."""
    dag = Dag()
    dag.add("genesis")
    dag.add("one", "genesis")
    dag.add("two", "one")
    dag.add("other", "genesis")
    dag.add("junk on two", "two")
    dag.ends.build_on([b"one", b"two", b"other", b"never seen"])
    assert dag.chosen() == ["two", "other"]
    dag.ends.build_on([])
    assert dag.chosen() == ["two", "other"]
    dag.add("own", "two", "other", own=True)
    dag.add("junk", "genesis")
    assert dag.chosen() == ["own"]


def _log(folder: Path, chain: MemoryChain, device: Device, root: object) -> VaultLog:
    log = open_log(folder, chain, device, root)  # type: ignore[arg-type]
    log.start()
    return log


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_a_vault_goes_on_among_siblings_and_its_blocks_stay_small(tmp_path: Path, count: int) -> None:
    """After a flood of siblings appends work, ids are as short as before, and old and new nodes start."""
    network = MemoryNetwork(1, manual=True)
    chain, device = network.replica("a"), Device("a")
    root = founded(chain, device)
    log = _log(tmp_path / "a", chain, device, root)
    log.recorder.append([to_dcb(note(0))])
    (parent,) = chain.leaves()
    for number in range(count):
        network.inject(b"junk %d" % number, parents=[parent])
    log.reconciler.catch_up()
    assert len(chain.leaves()) == count
    blocks = {ref.key for ref in chain.blocks()}
    position = max(log.recorder.append([to_dcb(note(number))]) for number in range(1, 5))
    log.close()
    made = [ref for ref in chain.blocks() if ref.key not in blocks]
    assert len(made) == 4
    assert all(len(ref.parents) <= 2 for ref in made)
    for folder in ("a", "late"):
        again = _log(tmp_path / folder, chain, device, root)
        assert again.index.horizon == position
        assert again.reconciler.last_error is None
        again.close()


def test_one_unreadable_id_hides_no_other_block() -> None:
    """An id that is longer than anybody reads is left out instead of stopping whoever walks the chain."""
    listed = b"\0\0\0".join(b"x" * 400 for _ in range(200))
    assert block_ids.readable_ref(b"short" + b"\0\0\0\0" + listed) is None
    assert block_ids.readable_ref(b"short" + b"\0\0\0\0" + b"x" * 400) is not None


def test_what_the_heads_stand_in_is_found_at_the_same_cost_in_any_log(tmp_path: Path) -> None:
    """The look-up before each block takes as many steps among thousands of batches as among a few."""
    chain, device = MemoryNetwork(1, manual=True).replica("a"), Device("a")
    log = _log(tmp_path / "a", chain, device, founded(chain, device))
    for number in range(3):
        log.recorder.append([to_dcb(note(number))])
    log.close()
    steps = []
    for copies in (0, 3000):
        log = open_log(tmp_path / "a", chain, device, log.judge.root)
        with log.index.database.transaction() as connection:
            columns = [str(row[1]) for row in connection.execute("PRAGMA table_info(batches)")][1:]
            other = {"batch_id": "randomblob(32)", "number": "number + 1000 + ?"}
            given = ", ".join(other.get(column, column) for column in columns)
            connection.executemany(
                f"INSERT INTO batches({', '.join(columns)}) SELECT {given} FROM batches WHERE seq = 1",
                [(copy,) for copy in range(copies)],
            )
            count = [0]
            connection.set_progress_handler(lambda c=count: c.__setitem__(0, c[0] + 1) or False, 1)  # type: ignore[misc]
            assert len(log.index.head_blocks(connection, 64)) == 1
            connection.set_progress_handler(None)
        steps.append(count[0])
        log.close()
    assert steps[1] <= steps[0] + 20


def test_leaves_that_were_judged_are_not_asked_after_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers' leaves stay leaves for ever: a look names them as known, and reads only what is new."""
    network = MemoryNetwork(1, manual=True)
    chain, device = network.replica("a"), Device("a")
    log = open_log(tmp_path / "a", chain, device, founded(chain, device))
    (parent,) = chain.leaves()
    for number in range(50):
        network.inject(b"junk %d" % number, parents=[parent])
    for _ in range(2):
        log.reconciler.catch_up()
    given: list[int] = []
    leaves = MemoryChain.leaves

    def counting(self: MemoryChain, but: frozenset[bytes]) -> list[BlockRef]:
        given.append(len(leaves(self, but)))
        return leaves(self, but)

    monkeypatch.setattr(MemoryChain, "leaves", counting)
    log.reconciler.catch_up()
    network.inject(b"one more", parents=[parent])
    assert log.reconciler.catch_up() == 1
    assert given == [0, 1]
    log.close()
