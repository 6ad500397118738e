"""Random work, killed at random places, again and again: what was acknowledged stands, what was forgotten is gone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.content_stores import AUTHOR, open_store
from support.killed_store import Ledger, StoreKiller, plaintext_of
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.domain.ids import ContentId, Root

ROUNDS = [pytest.param(4, id="4"), pytest.param(100, id="100", marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def killer() -> Iterator[StoreKiller]:
    """Kills processes at fault points."""
    with StoreKiller() as made:
        yield made


@pytest.mark.parametrize("rounds", ROUNDS)
def test_killed_again_and_again(tmp_path: Path, killer: StoreKiller, rounds: int) -> None:
    """Over many kills at random fault points every promise in the outside ledger is kept."""
    home, seed = tmp_path / "home", os.urandom(4).hex()
    chance = random.Random(seed)
    open_store(home).close()
    seen = 0
    for number in range(rounds):
        fatal = chance.randrange(1, 400)
        killer.kill_mixed(home, f"{seed}/{number}", fatal)
        ledger = Ledger(home)
        store = open_store(home)
        try:
            lines = ledger.lines()
            # All of it in the last round; before that, only what the last victim touched.
            _check(store, lines, lines if number == rounds - 1 else lines[seen:])
            seen = len(lines)
        except AssertionError as e:
            raise AssertionError(f"seed {seed}, round {number}, fatal {fatal}") from e
        finally:
            store.close()
            ledger.close()


def _check(store: DiskContentStore, lines: list[list[str]], fresh: list[list[str]]) -> None:
    published = {words[1]: words for words in fresh if words[0] == "+"}
    doubtful = {words[1] for words in lines if words[0] == "?"}
    forgotten = {words[1] for words in lines if words[0] == "-"}
    for text, words in published.items():
        content_id = ContentId(bytes.fromhex(text))
        if store.erased(content_id):
            assert text in doubtful
            assert store.content_key(content_id) is None
            assert not store.has_bytes(content_id)
            continue
        assert text not in forgotten
        length = int(words[3])
        reader = store.reader(
            content_id,
            author=AUTHOR,
            root=Root(bytes.fromhex(words[2])),
            length=length,
            padded_length=int(words[4]),
        )
        data = b""
        while piece := reader.read():
            data += piece
        reader.close()
        assert data == plaintext_of(content_id, length)
    usage = store.usage()
    assert usage.keys == usage.contents
    assert usage.keys == sum(store._state.slots.read(n) is not None for n in range(usage.slots))


STREAM = """
import os, resource, sys
from pathlib import Path
from support.content_stores import AUTHOR, new_id, open_store
store = open_store(Path(sys.argv[1]))
piece, count = os.urandom(1 << 20), int(sys.argv[2])
def stream(count):
    writer = store.writer(new_id(), author=AUTHOR)
    for _ in range(count):
        writer.write(piece)
    s = writer.finish()
    reader = store.reader(s.content_id, author=AUTHOR, root=s.root, length=s.length, padded_length=s.padded_length)
    total = 0
    while data := reader.read():
        assert data == (piece + piece)[total % len(piece) :][: len(data)]
        total += len(data)
    assert total == count << 20
    store.erase((s.content_id,))
stream(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream(count)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
store.close()
"""


@pytest.mark.parametrize("mib", [pytest.param(96, id="96"), pytest.param(4096, id="4096", marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_content(tmp_path: Path, mib: int) -> None:
    """A large content goes in and out within a few MiB of memory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", STREAM, str(tmp_path), str(mib)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=True)
    assert int(done.stdout) < 32 << 10
