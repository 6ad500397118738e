"""Dropping bytes: the space is free, the key stays, nothing comes back by itself, and forgetting finds nothing left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.canaries import find_canaries
from support.content_stores import Kept, ciphertext, get, new_id, open_store, put
from support.faulty_files import FaultPlan, FaultyFileSystem, faulty_sqlite
from support.killed_store import StoreKiller
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.domain.errors import ConflictError, ForgottenError, NotYetAvailableError, StorageFullError
from walytis_vault.domain.limits import SEGMENT_BYTES

POINTS = ["drop.after_mark", "drop.after_overwrite", "drop.after_bytes"]


@pytest.fixture(scope="module")
def killer() -> Iterator[StoreKiller]:
    """Kills processes at fault points."""
    with StoreKiller() as made:
        yield made


def bring_back(store: DiskContentStore, kept: Kept, cipher: bytes, leaves: list[bytes]) -> None:
    """Receive the bytes again, as from a peer."""
    receiver = store.begin_ciphertext(kept.content_id, kept.root, len(cipher))
    if not receiver.has_leaves:
        receiver.set_leaves(leaves)
    for number in receiver.missing():
        receiver.write_segment(number, cipher[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES])
    receiver.finish()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("size", [700, 200_000])
def test_killed_while_dropping(tmp_path: Path, killer: StoreKiller, point: str, size: int) -> None:
    """Killed at any step, the next start finishes the drop; no ciphertext is left, and it can come back."""
    store = open_store(tmp_path)
    kept, other = put(store, os.urandom(size)), put(store, os.urandom(size))
    cipher, leaves = ciphertext(store, kept), store.leaf_hashes(kept.content_id)
    store.close()
    canaries = {"first": cipher[60:92], "last": cipher[-32:]}
    assert {hit.canary for hit in find_canaries(tmp_path, canaries)} == set(canaries)
    assert killer.kill_at(point, tmp_path, "drop", kept.content_id)
    again = open_store(tmp_path)
    assert not again.has_bytes(kept.content_id)
    assert again.dropped(kept.content_id)
    assert again.content_key(kept.content_id) is not None
    assert find_canaries(tmp_path, canaries) == []
    assert get(again, other) == other.data
    bring_back(again, kept, cipher, leaves)
    assert get(again, kept) == kept.data
    assert not again.dropped(kept.content_id)
    again.erase((kept.content_id,))
    assert find_canaries(tmp_path, canaries) == []
    again.compact(everything=True)
    usage = again.usage()
    assert usage.pack_bytes == usage.pack_live_bytes
    again.close()


def test_dropping_frees_space(tmp_path: Path) -> None:
    """Blobs vanish at once, packs when they are mostly waste."""
    store = open_store(tmp_path)
    small = [put(store, os.urandom(10_000)) for _ in range(20)]
    large = put(store, os.urandom(SEGMENT_BYTES))
    full = store.usage()
    for kept in (*small, large):
        assert store.drop_bytes(kept.content_id) == kept.stored.ciphertext_length
    usage = store.usage()
    assert (usage.contents, usage.keys, usage.blob_bytes, usage.pack_bytes) == (0, full.keys, 0, 0)
    store.close()


def test_dropping_ends_what_is_coming_in(tmp_path: Path) -> None:
    """Segments that came already go too, and whoever delivers more is told."""
    source, here = open_store(tmp_path / "source"), open_store(tmp_path / "here")
    kept = put(source, os.urandom(3 * SEGMENT_BYTES))
    cipher, leaves = ciphertext(source, kept), source.leaf_hashes(kept.content_id)
    receiver = here.begin_ciphertext(kept.content_id, kept.root, len(cipher))
    receiver.set_leaves(leaves)
    receiver.write_segment(0, cipher[:SEGMENT_BYTES])
    here.drop_bytes(kept.content_id)
    with pytest.raises(ConflictError, match="dropped"):
        receiver.write_segment(1, cipher[SEGMENT_BYTES : 2 * SEGMENT_BYTES])
    assert not find_canaries(tmp_path / "here", {"segment": cipher[100:132]})
    bring_back(here, kept, cipher, leaves)
    assert here.verify(kept.content_id, kept.root)
    here.close()
    source.close()


def test_a_reader_of_a_dropped_content_ends_well(tmp_path: Path) -> None:
    """Who was reading gets the rest, or an error; never wrong bytes."""
    store = open_store(tmp_path)
    kept = put(store, os.urandom(3 * SEGMENT_BYTES))
    stored = kept.stored
    reader = store.reader(
        kept.content_id,
        author="did:walytis:author",
        root=kept.root,
        length=stored.length,
        padded_length=stored.padded_length,
    )
    data = reader.read()
    store.drop_bytes(kept.content_id)
    while piece := reader.read():
        data += piece
    assert data == kept.data
    reader.close()
    with pytest.raises(NotYetAvailableError):
        get(store, kept)
    store.close()


def fill(store: DiskContentStore, size: int) -> None:
    """Publish until the disk refuses."""
    for _ in range(200):
        put(store, bytes(size))


@pytest.mark.parametrize("size", [50_000, 300_000])
def test_dropping_on_a_full_disk(tmp_path: Path, size: int) -> None:
    """With the disk full, dropping gives room, again and again, and the ballast comes back when there is some."""
    plan = FaultPlan()
    with faulty_sqlite(plan):
        store = open_store(tmp_path, fs=FaultyFileSystem(plan))
        kept = [put(store, os.urandom(size)) for _ in range(3)]
        plan.full_beyond(tmp_path, 0)
        for one in kept:
            with pytest.raises(StorageFullError):
                fill(store, size)
            assert store.drop_bytes(one.content_id)
        store.erase((kept[0].content_id,))
        with pytest.raises(ForgottenError):
            store.drop_bytes(kept[0].content_id)
        plan.count_only()
        store.drop_bytes(put(store, bytes(size)).content_id)
        assert (tmp_path / "content" / "ballast").stat().st_size == 4 << 20
        store.close()


def test_what_is_to_be_fetched_is_told_at_once(tmp_path: Path) -> None:
    """What is not here whole is unsettled; what is here, was dropped or was forgotten is not."""
    store, source = open_store(tmp_path / "home"), open_store(tmp_path / "source")
    whole, dropped, gone = (put(store, os.urandom(700)).content_id for _ in range(3))
    store.drop_bytes(dropped)
    store.erase((gone,))
    key_only, bytes_only = put(source, b"k"), put(source, b"b")
    key = source.content_key(key_only.content_id)
    assert key is not None
    store.put_key(key_only.content_id, key)
    bring_back(store, bytes_only, ciphertext(source, bytes_only), source.leaf_hashes(bytes_only.content_id))
    wanted = [new_id(), key_only.content_id, bytes_only.content_id]
    assert store.unsettled([whole, dropped, gone, *wanted]) == wanted
    assert store.unsettled([]) == []
    store.close()
    source.close()
