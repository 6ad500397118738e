"""Mending: of a damaged content only what is broken is fetched again, also when the node dies meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.content_stores import Kept, get, open_store, put
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.domain import faults
from walytis_vault.domain.errors import NotYetAvailableError
from walytis_vault.domain.limits import SEGMENT_BYTES


class PowerCutError(Exception):
    """The process ends here."""


@pytest.fixture(autouse=True)
def no_faults_left() -> Iterator[None]:
    """Take the fault hook away again."""
    yield
    faults.install(None)


def keep(store: DiskContentStore, size: int) -> tuple[Kept, list[bytes], list[bytes]]:
    """A stored content, its leaf hashes and its segments as a peer would hand them out."""
    kept = put(store, os.urandom(size))
    leaves = store.leaf_hashes(kept.content_id)
    at = range(len(leaves))
    return kept, leaves, [store.read_ciphertext(kept.content_id, n * SEGMENT_BYTES, SEGMENT_BYTES) for n in at]


def damage(home: Path, offset: int) -> None:
    """Flip a bit in the only blob file, or in the only pack."""
    (path,) = [*(home / "content" / "blobs").glob("*.blob")] or [*(home / "content" / "packs").iterdir()]
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def fetch(store: DiskContentStore, kept: Kept, leaves: list[bytes], segments: list[bytes]) -> list[int]:
    """Receive what is missing, as from a peer; which segments that were."""
    length = sum(map(len, segments))
    writer = store.begin_ciphertext(kept.content_id, kept.root, length)
    if not writer.has_leaves:
        writer.set_leaves(leaves)
    missing = writer.missing()
    for number in missing:
        writer.write_segment(number, segments[number])
    writer.finish()
    return missing


def test_only_the_broken_segment_is_fetched_again(tmp_path: Path) -> None:
    """Of three segments the one with a flipped bit is missing after mending; then the content reads as before."""
    store = open_store(tmp_path)
    kept, leaves, segments = keep(store, 2 * SEGMENT_BYTES + 5000)
    damage(tmp_path, SEGMENT_BYTES + 17)
    assert not store.verify(kept.content_id, kept.root)
    store.mend(kept.content_id, kept.root)
    assert store.lost_bytes(kept.content_id), "it stays known as lost until it is back"
    assert not store.has_bytes(kept.content_id)
    with pytest.raises(NotYetAvailableError):
        get(store, kept)
    assert fetch(store, kept, leaves, segments) == [1]
    assert store.verify(kept.content_id, kept.root)
    assert get(store, kept) == kept.data
    store.close()


def test_a_damaged_small_content_is_fetched_whole(tmp_path: Path) -> None:
    """A content in a pack has one segment: it comes again."""
    store = open_store(tmp_path)
    kept, leaves, segments = keep(store, 900)
    damage(tmp_path, 200)
    assert not store.verify(kept.content_id, kept.root)
    store.mend(kept.content_id, kept.root)
    assert store.lost_bytes(kept.content_id)
    assert not store.dropped(kept.content_id), "nobody asked for that: it may come back unasked"
    assert fetch(store, kept, leaves, segments) == [0]
    assert get(store, kept) == kept.data
    assert store.lost() == 0
    store.close()


@pytest.mark.parametrize("point", ["mend.after_note", "mend.after_rename"])
def test_mending_that_was_cut_off_loses_nothing(tmp_path: Path, point: str) -> None:
    """After a crash inside mending the next start has the content damaged or coming, and it can be completed."""
    store = open_store(tmp_path)
    kept, leaves, segments = keep(store, 2 * SEGMENT_BYTES + 5000)
    damage(tmp_path, 17)

    def cut(name: str) -> None:
        if name == point:
            raise PowerCutError

    faults.install(cut)
    with pytest.raises(PowerCutError):
        store.mend(kept.content_id, kept.root)
    faults.install(None)
    store.close()
    store = open_store(tmp_path)
    if store.has_bytes(kept.content_id):
        assert not store.verify(kept.content_id, kept.root)
        store.mend(kept.content_id, kept.root)
    assert fetch(store, kept, leaves, segments) == [0]
    assert get(store, kept) == kept.data
    store.close()
