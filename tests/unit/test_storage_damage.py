"""Damaged, missing, extra and half-written files: our error or a repaired start, never wrong bytes."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.content_stores import AUTHOR, Kept, get, new_id, open_store, put
from support.killed_store import StoreKiller
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.domain.errors import (
    ConflictError,
    DamagedContentError,
    NotYetAvailableError,
    StorageError,
    VaultError,
)
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.limits import SEGMENT_BYTES


@pytest.fixture(scope="module")
def killer() -> Iterator[StoreKiller]:
    """Kills processes at fault points."""
    with StoreKiller() as made:
        yield made


def only_file(home: Path, folder: str) -> Path:
    (found,) = (home / "content" / folder).iterdir()
    return found


def blob_of(home: Path, kept: Kept) -> Path:
    return home / "content" / "blobs" / f"{kept.content_id.hex()}.blob"


def assert_damaged(store: DiskContentStore, kept: Kept) -> None:
    """Reading ends in our error; what came out before is the true beginning; verify says no."""
    s = kept.stored
    got = b""
    with pytest.raises(DamagedContentError):  # noqa: PT012 - which read fails depends on where the damage is
        reader = store.reader(s.content_id, author=AUTHOR, root=s.root, length=s.length, padded_length=s.padded_length)
        while piece := reader.read():
            got += piece
    assert kept.data.startswith(got)
    assert not store.verify(s.content_id, s.root)


def test_every_byte_of_a_small_blob(tmp_path: Path) -> None:
    """Each byte flipped and each truncation of a packed content is refused, and the untouched one is served."""
    store = open_store(tmp_path)
    kept = put(store, b"every byte counts")
    path = only_file(tmp_path, "packs")
    good = path.read_bytes()
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 0x01]) + good[i + 1 :])
        assert_damaged(store, kept)
    for i in range(len(good)):
        path.write_bytes(good[:i])
        assert_damaged(store, kept)
    path.write_bytes(good)
    assert get(store, kept) == kept.data
    store.close()


Damage = Callable[[bytearray, int], bytes]


def _swap(data: bytearray, _: int) -> bytes:
    one, two = data[:SEGMENT_BYTES], data[SEGMENT_BYTES : 2 * SEGMENT_BYTES]
    return bytes(two + one + data[2 * SEGMENT_BYTES :])


def _flip(at: int) -> Damage:
    def flip(data: bytearray, _: int) -> bytes:
        data[at] ^= 0x40
        return bytes(data)

    return flip


DAMAGE: dict[str, Damage] = {
    "first byte": _flip(0),
    "inside the first segment": _flip(70_000),
    "first byte of the second segment": _flip(SEGMENT_BYTES),
    "last leaf hash": _flip(-1),
    "segments swapped": _swap,
    "segment doubled": lambda d, _: bytes(d[:SEGMENT_BYTES] + d),
    "segment dropped": lambda d, _: bytes(d[SEGMENT_BYTES:]),
    "cut at the leaf hashes": lambda d, n: bytes(d[:n]),
    "cut in the ciphertext": lambda d, n: bytes(d[: n - 5]),
    "cut by one": lambda d, _: bytes(d[:-1]),
    "empty": lambda *_: b"",
    "zeros": lambda d, _: bytes(len(d)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_to_a_large_blob(tmp_path: Path, damage: Damage) -> None:
    """Flips, cuts, swapped, doubled and dropped segments of a blob file are refused, also after a restart."""
    store = open_store(tmp_path)
    kept = put(store, os.urandom(2 * SEGMENT_BYTES + 1000))
    path = blob_of(tmp_path, kept)
    path.write_bytes(damage(bytearray(path.read_bytes()), kept.stored.ciphertext_length))
    assert_damaged(store, kept)
    store.close()
    again = open_store(tmp_path)
    assert_damaged(again, kept)
    again.close()


CHUNK = (16 << 10) + 16
CHUNKS: dict[str, tuple[int, ...]] = {
    "swapped": (1, 0, 2),
    "doubled": (0, 0, 1, 2),
    "doubled in place of another": (0, 0, 2),
    "dropped": (0, 2),
    "last dropped": (0, 1),
}


@pytest.mark.parametrize("order", CHUNKS.values(), ids=CHUNKS.keys())
def test_chunks_of_a_small_content(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Encryption chunks of a packed content that were swapped, doubled or dropped are refused, and audited so."""
    store = open_store(tmp_path)
    kept, neighbour = put(store, os.urandom(40_000)), put(store, os.urandom(500))
    path = only_file(tmp_path, "packs")
    good, length = path.read_bytes(), kept.stored.ciphertext_length
    whole, rest = good[:length], good[length:]
    chunks = [whole[56 + n * CHUNK : 56 + (n + 1) * CHUNK] for n in range(3)]
    changed = whole[:56] + b"".join(chunks[n] for n in order)
    path.write_bytes(changed[:length].ljust(length, b"\x00") + rest)
    assert_damaged(store, kept)
    assert get(store, neighbour) == neighbour.data
    path.write_bytes(good)
    assert get(store, kept) == kept.data
    store.close()


def test_the_blob_of_another_content_or_vault(tmp_path: Path) -> None:
    """A blob that is whole but belongs to another content, or another vault, is refused."""
    store = open_store(tmp_path / "a")
    other = open_store(tmp_path / "b", vault_id="another-vault")
    kept, second = put(store, os.urandom(200_000)), put(store, os.urandom(200_000))
    foreign = put(other, kept.data, content_id=kept.content_id)
    for source in (blob_of(tmp_path / "a", second), blob_of(tmp_path / "b", foreign)):
        shutil.copy(source, blob_of(tmp_path / "a", kept))
        assert_damaged(store, kept)
    store.close()
    other.close()


def test_the_key_of_another_content(tmp_path: Path) -> None:
    """Slots that were swapped on disk do not open: the content is without its key, never decrypted wrongly."""
    store = open_store(tmp_path)
    kept, second = put(store, b"one"), put(store, b"two")
    path = tmp_path / "content" / "keys.slots"
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 128], data[4096 + 128 : 4096 + 256] = data[4096 + 128 : 4096 + 256], data[4096 : 4096 + 128]
    path.write_bytes(data)
    for one in (kept, second):
        assert store.content_key(one.content_id) is None
        with pytest.raises(NotYetAvailableError):
            get(store, one)
    store.close()


def test_a_lost_key_can_be_put_back(tmp_path: Path) -> None:
    """A content whose slot was destroyed takes its key from a peer and reads again."""
    store = open_store(tmp_path)
    kept = put(store, b"precious")
    key = store.content_key(kept.content_id)
    assert key is not None
    path = tmp_path / "content" / "keys.slots"
    path.write_bytes(path.read_bytes()[:4096] + os.urandom(128 * 1024))
    assert store.content_key(kept.content_id) is None
    store.put_key(kept.content_id, key)
    assert get(store, kept) == b"precious"
    store.close()


@pytest.mark.parametrize("size", [500, 200_000])
def test_a_missing_file_is_found_at_start(tmp_path: Path, size: int) -> None:
    """A row without its file counts as not here; the key stays, and the rest of the store works."""
    store = open_store(tmp_path)
    kept = put(store, os.urandom(size))
    store.close()
    only_file(tmp_path, "packs" if size == 500 else "blobs").unlink()
    again = open_store(tmp_path)
    assert not again.has_bytes(kept.content_id)
    assert again.content_key(kept.content_id) is not None
    with pytest.raises(NotYetAvailableError):
        get(again, kept)
    assert get(again, put(again, b"next")) == b"next"
    again.close()


def test_a_cut_pack_loses_only_what_was_cut(tmp_path: Path) -> None:
    """Of a pack that lost its end, the contents before the cut stay readable, then and after more were added."""
    store = open_store(tmp_path)
    kept = [put(store, os.urandom(300)) for _ in range(5)]
    store.close()
    path = only_file(tmp_path, "packs")
    path.write_bytes(path.read_bytes()[: 2 * path.stat().st_size // 5 + 10])
    again = open_store(tmp_path)
    assert [again.has_bytes(one.content_id) for one in kept] == [True, True, False, False, False]
    more = put(again, os.urandom(1000))
    assert all(get(again, one) == one.data for one in [*kept[:2], more])
    again.close()


def test_files_that_nobody_owns_are_removed(tmp_path: Path) -> None:
    """Temporary, foreign and orphaned files in the store's folders are gone after a start."""
    store = open_store(tmp_path)
    kept = put(store, os.urandom(200_000))
    put(store, b"small")
    store.close()
    blobs, packs = tmp_path / "content" / "blobs", tmp_path / "content" / "packs"
    strays = [blobs / name for name in ("x.temp", f"{bytes(16).hex()}.blob", f"{bytes(16).hex()}.part", "notes.txt")]
    strays += [packs / name for name in ("00000099.pack", "x.pack", "00000001.pack.tmp")]
    for stray in strays:
        stray.write_bytes(b"stray")
    with (packs / "00000001.pack").open("ab") as file:
        file.write(b"a tail that was never acknowledged")
    again = open_store(tmp_path)
    assert not any(stray.exists() for stray in strays)
    assert b"never acknowledged" not in (packs / "00000001.pack").read_bytes()
    assert get(again, kept) == kept.data
    again.close()


@pytest.mark.parametrize("name", ["index.db", "keys.slots"])
def test_a_lost_index_or_slot_file_stops_the_start(tmp_path: Path, name: str) -> None:
    """Without index or slot file the store refuses to start, instead of sweeping the contents away."""
    store = open_store(tmp_path)
    kept = put(store, os.urandom(200_000))
    store.close()
    lost = tmp_path / "content" / name
    lost.rename(tmp_path / "aside")
    with pytest.raises(StorageError, match="missing"):
        open_store(tmp_path)
    assert blob_of(tmp_path, kept).exists()
    lost.unlink(missing_ok=True)
    (tmp_path / "aside").rename(lost)
    again = open_store(tmp_path)
    assert get(again, kept) == kept.data
    again.close()


def test_a_cut_slot_file_loses_only_those_keys(tmp_path: Path) -> None:
    """Keys beyond the end of a cut slot file count as not here; new ones never collide with them."""
    store = open_store(tmp_path)
    kept = [put(store, os.urandom(100)) for _ in range(4)]
    store.close()
    path = tmp_path / "content" / "keys.slots"
    path.write_bytes(path.read_bytes()[: 4096 + 2 * 128])
    again = open_store(tmp_path)
    assert [again.content_key(one.content_id) is None for one in kept] == [False, False, True, True]
    more = [put(again, os.urandom(100)) for _ in range(4)]
    assert all(get(again, one) == one.data for one in [*kept[:2], *more])
    assert [again.content_key(one.content_id) is None for one in kept] == [False, False, True, True]
    again.close()


@pytest.mark.parametrize("offset", [0, 27, 4095])
def test_a_slot_file_with_another_header_is_refused(tmp_path: Path, offset: int) -> None:
    """Magic and reserved zeros of the header are held against the format, byte by byte."""
    store = open_store(tmp_path)
    put(store, b"x")
    store.close()
    path = tmp_path / "content" / "keys.slots"
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="slot file of version 1"):
        open_store(tmp_path)


def test_the_reserved_space_does_not_compress(tmp_path: Path) -> None:
    """The ballast takes its room on a file system that compresses, too."""
    open_store(tmp_path).close()
    data = (tmp_path / "content" / "ballast").read_bytes()
    assert len(zlib.compress(data)) >= len(data) == 4 << 20


@pytest.mark.parametrize("name", ["index.db", "keys.slots"])
def test_garbage_in_place_of_a_file_gives_our_error(tmp_path: Path, name: str) -> None:
    """A file that is something else is refused with StorageError."""
    store = open_store(tmp_path)
    put(store, b"x")
    store.close()
    (tmp_path / "content" / name).write_bytes(os.urandom(20_000))
    with pytest.raises(StorageError):
        open_store(tmp_path)


def test_closing_the_store_ends_what_is_under_way(tmp_path: Path) -> None:
    """Readers and writers of a closed store are told so (and never that the content was forgotten)."""
    store = open_store(tmp_path)
    kept = put(store, os.urandom(3 * SEGMENT_BYTES))
    s = kept.stored
    reader = store.reader(s.content_id, author=AUTHOR, root=s.root, length=s.length, padded_length=s.padded_length)
    assert reader.read()
    small, large = store.writer(new_id(), author=AUTHOR), store.writer(new_id(), author=AUTHOR)
    small.write(b"x")
    large.write(bytes(2 * SEGMENT_BYTES))
    store.close()
    store.close()
    for attempt in (reader.read, small.finish, large.finish, lambda: put(store, b"y")):
        with pytest.raises(StorageError, match="closed"):
            attempt()
    again = open_store(tmp_path)
    assert get(again, kept) == kept.data
    assert again.usage().contents == 1
    assert len(list((tmp_path / "content" / "blobs").iterdir())) == 1
    again.close()


def test_a_store_belongs_to_one_vault(tmp_path: Path) -> None:
    """A store is not opened for another vault."""
    open_store(tmp_path).close()
    with pytest.raises(ConflictError):
        open_store(tmp_path, vault_id="another")
    open_store(tmp_path).close()


SMALL_POINTS = ["publish.after_pack_write", "publish.after_slot", "publish.after_sync", "publish.after_index"]
LARGE_POINTS = [
    "publish.after_create",
    "publish.after_write",
    "publish.after_fsync",
    "publish.after_rename",
    "publish.after_slot",
    "publish.after_sync",
    "publish.after_index",
]


@pytest.mark.parametrize(
    ("action", "point"),
    [("publish-small", p) for p in SMALL_POINTS] + [("publish-large", p) for p in LARGE_POINTS],
)
def test_killed_while_publishing(tmp_path: Path, killer: StoreKiller, action: str, point: str) -> None:
    """Killed at any step of a publish: the content is wholly there or wholly not, and no file or key is left over."""
    store = open_store(tmp_path)
    before = put(store, os.urandom(700))
    store.close()
    content_id = new_id()
    assert killer.kill_at(point, tmp_path, action, content_id)
    again = open_store(tmp_path)
    there = again.has_bytes(content_id)
    assert there == (again.content_key(content_id) is not None) == (point == "publish.after_index")
    usage = again.usage()
    assert (usage.contents, usage.keys) == (1 + there, 1 + there)
    assert usage.pack_bytes == usage.pack_live_bytes
    assert len(list((tmp_path / "content" / "blobs").iterdir())) == (there and action == "publish-large")
    assert _keys_on_disk(again) == usage.keys
    assert get(again, before) == before.data
    if not there:
        put(again, b"the same id again", content_id=ContentId(content_id))
    again.close()


def _keys_on_disk(store: DiskContentStore) -> int:
    slots = store._state.slots
    return sum(slots.read(number) is not None for number in range(slots.capacity))


def test_an_unwritable_or_missing_home_is_told(tmp_path: Path) -> None:
    """A store that cannot be made gives StorageError, not a bare OSError."""
    (tmp_path / "content").write_text("in the way")
    with pytest.raises(StorageError):
        open_store(tmp_path)
    with pytest.raises(VaultError):
        open_store(tmp_path / "content" / "below a file")


def test_a_vanished_blob_folder_gives_our_error(tmp_path: Path) -> None:
    """Folders that vanish under a running store give StorageError; nothing is acknowledged."""
    store = open_store(tmp_path)
    (tmp_path / "content" / "blobs").rmdir()
    with pytest.raises(StorageError):
        put(store, bytes(200_000), content_id=new_id())
    store.close()
