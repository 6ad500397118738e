"""Proof of forgetting: canaries in key, content and ciphertext are found before, and nowhere after, killed or not."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.canaries import encodings, find_canaries
from support.content_stores import AUTHOR, FixedRandomness, Kept, ciphertext, get, open_store, put
from support.killed_store import StoreKiller
from walytis_vault.adapters.crypto.descriptor import Descriptor
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.slots import HEADER_BYTES, SLOT_BYTES
from walytis_vault.domain.errors import ForgottenError, LockedError
from walytis_vault.domain.ids import ContentId, ContentKey

PLAIN, NAME = os.urandom(32), os.urandom(16).hex()
SMALL_KEY, LARGE_KEY = os.urandom(32), os.urandom(32)

FORGET_POINTS = [
    "forget.before_mark",
    "forget.after_mark",
    "forget.after_slot",
    "forget.after_overwrite",
    "forget.after_bytes",
    "forget.after_rows",
    "forget.after_checkpoint",
    "forget.after_tombstone",
]
COMPACT_POINTS = [
    "compact.after_copy",
    "compact.after_sync",
    "compact.after_index",
    "compact.before_unlink",
    "compact.after_unlink",
]


@pytest.fixture(scope="module")
def killer() -> Iterator[StoreKiller]:
    """Kills processes at fault points."""
    with StoreKiller() as made:
        yield made


class Planted:
    """A home with two victims (a small and a large content) among others, and everything that must vanish."""

    def __init__(self, home: Path, *, passphrase: str | None = None) -> None:
        self.home = home
        store = open_store(home, randomness=FixedRandomness(SMALL_KEY, LARGE_KEY), passphrase=passphrase)
        self.small = put(store, PLAIN + os.urandom(500))
        self.large = put(store, os.urandom(100_000) + PLAIN + os.urandom(100_000))
        self.others = [put(store, os.urandom(400)), put(store, os.urandom(150_000))]
        self.victims = (self.small.content_id, self.large.content_id)
        self.at_rest: dict[str, bytes] = {}
        for label, kept in (("small", self.small), ("large", self.large)):
            cipher = ciphertext(store, kept)
            self.at_rest[f"{label}: sealed key"] = _sealed_slot(store, home, kept.content_id)
            self.at_rest[f"{label}: first ciphertext"] = cipher[56:88]
            self.at_rest[f"{label}: last ciphertext"] = cipher[-32:]
            store.seal_descriptor(kept.content_id, Descriptor(name=NAME, length=len(kept.data)))
        store.close()

    @property
    def secrets(self) -> dict[str, bytes]:
        """What may never be readable on disk, before or after."""
        return {"content": PLAIN, "small key": SMALL_KEY, "large key": LARGE_KEY, "name": NAME.encode()}

    def positive_control(self) -> None:
        """The scan does see what is at rest."""
        assert {hit.canary for hit in find_canaries(self.home, self.at_rest)} == set(self.at_rest)

    def assert_gone(self, *extra: Path) -> None:
        """Nothing of the victims is in any file; the others are whole."""
        for folder in (self.home, *extra):
            assert find_canaries(folder, self.at_rest | self.secrets) == []

    def assert_done(self, store: DiskContentStore) -> None:
        """The victims are gone for callers too, and the others read back."""
        for victim in (self.small, self.large):
            assert store.erased(victim.content_id)
            with pytest.raises(ForgottenError):
                get(store, victim)
        assert all(get(store, other) == other.data for other in self.others)


def _sealed_slot(store: DiskContentStore, home: Path, content_id: ContentId) -> bytes:
    row = store._state.index.get(content_id)
    assert row is not None
    assert row.slot is not None
    start = HEADER_BYTES + row.slot * SLOT_BYTES
    return (home / "content" / "keys.slots").read_bytes()[start : start + SLOT_BYTES]


def test_the_scan_finds_every_encoding(tmp_path: Path) -> None:
    """Positive control of the scanner itself: raw, hex, base64 in all alignments, JSON, UTF-16, and file names."""
    secret = os.urandom(32)
    planted = {
        "raw": b"xx" + secret + b"yy",
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "json": json.dumps({"x": secret.decode("latin-1")}).encode(),
        "utf-16-le": secret.decode("latin-1").encode("utf-16-le"),
        "utf-16-be": secret.decode("latin-1").encode("utf-16-be"),
    }
    for before in range(3):
        planted[f"base64+{before}"] = base64.b64encode(os.urandom(3 + before) + secret + os.urandom(before))
        planted[f"base64url+{before}"] = base64.urlsafe_b64encode(os.urandom(before) + secret + b"!!")
    for how, data in planted.items():
        folder = tmp_path / how
        folder.mkdir()
        (folder / "file").write_bytes(b"noise" + data + b"noise")
        assert how in {hit.encoding for hit in find_canaries(folder, {"s": secret})}, how
    (tmp_path / "named" / f"a-{secret.hex()}").mkdir(parents=True)
    assert find_canaries(tmp_path / "named", {"s": secret})
    assert not find_canaries(tmp_path, {"s": os.urandom(32)})
    with pytest.raises(ValueError, match="16"):
        list(encodings(b"short"))


def test_nothing_is_left_after_forgetting(tmp_path: Path) -> None:
    """After erase no key, sealed key, plaintext or ciphertext is in any file; also after compaction and restart."""
    planted = Planted(tmp_path)
    planted.positive_control()
    store = open_store(tmp_path)
    store.erase(planted.victims)
    planted.assert_gone()
    planted.assert_done(store)
    store.compact(everything=True)
    planted.assert_gone()
    planted.assert_done(store)
    store.close()
    planted.assert_gone()
    store = open_store(tmp_path)
    planted.assert_done(store)
    store.close()


def test_nothing_is_readable_at_rest_with_a_passphrase(tmp_path: Path) -> None:
    """In a sealed vault no key, content or name is readable on disk, even before forgetting."""
    planted = Planted(tmp_path, passphrase="correct horse")
    planted.positive_control()
    assert find_canaries(tmp_path, planted.secrets) == []


@pytest.mark.parametrize("point", FORGET_POINTS)
def test_killed_while_forgetting(tmp_path: Path, killer: StoreKiller, point: str) -> None:
    """Killed at any step, the next start finishes (or, before the mark, nothing began): then nothing is left."""
    planted = Planted(tmp_path)
    planted.positive_control()
    assert killer.kill_at(point, tmp_path, "erase", *planted.victims)
    store = open_store(tmp_path)
    if point == "forget.before_mark":
        assert get(store, planted.small) == planted.small.data
        store.erase(planted.victims)
    planted.assert_done(store)
    planted.assert_gone()
    store.close()


@pytest.mark.parametrize("point", COMPACT_POINTS)
def test_killed_while_compacting(tmp_path: Path, killer: StoreKiller, point: str) -> None:
    """Killed at any step of a compaction, all living contents are whole after the restart and nothing came back."""
    planted = Planted(tmp_path)
    assert killer.kill_at(point, tmp_path, "compact", *planted.victims)
    store = open_store(tmp_path)
    planted.assert_done(store)
    planted.assert_gone()
    store.compact(everything=True)
    planted.assert_done(store)
    usage = store.usage()
    assert usage.pack_bytes == usage.pack_live_bytes
    store.close()


def test_a_replica_that_was_coming_in_is_forgotten_too(tmp_path: Path) -> None:
    """Segments that had come from a peer, and a key that had come alone, are destroyed with the rest."""
    source = open_store(tmp_path / "source", randomness=FixedRandomness(SMALL_KEY))
    kept = put(source, os.urandom(3_000_000))
    here = open_store(tmp_path / "here")
    receiver = here.begin_ciphertext(kept.content_id, kept.root, kept.stored.ciphertext_length)
    receiver.set_leaves(source.leaf_hashes(kept.content_id))
    segment = source.read_ciphertext(kept.content_id, 0, 1 << 20)
    receiver.write_segment(0, segment)
    receiver.close()
    here.put_key(kept.content_id, ContentKey(SMALL_KEY))
    canaries = {"segment": segment[100:132], "slot": _sealed_slot(here, tmp_path / "here", kept.content_id)}
    assert {hit.canary for hit in find_canaries(tmp_path / "here", canaries)} == set(canaries)
    here.erase((kept.content_id,))
    assert find_canaries(tmp_path / "here", canaries | {"key": SMALL_KEY}) == []
    assert here._state.index.partials() == []
    here.close()
    source.close()


def test_an_aborted_or_failed_upload_leaves_nothing(tmp_path: Path) -> None:
    """What was written before an abort, or by a process that was killed, is gone after the next start."""
    store = open_store(tmp_path, randomness=FixedRandomness(SMALL_KEY))
    writer = store.writer(ContentId(os.urandom(16)), author=AUTHOR)
    writer.write(os.urandom(2_000_000))
    writer.abort()
    store.close()
    assert not list((tmp_path / "content" / "blobs").iterdir())
    assert not find_canaries(tmp_path, {"key": SMALL_KEY})


def test_forgetting_needs_no_key(tmp_path: Path) -> None:
    """A locked vault can forget, though it can neither read nor write."""
    planted = Planted(tmp_path, passphrase="p")
    store = open_store(tmp_path, passphrase="p")
    store._state.keys.lock()
    with pytest.raises(LockedError):
        get(store, planted.small)
    with pytest.raises(LockedError):
        put(store, b"x")
    store.erase(planted.victims)
    planted.assert_gone()
    store._state.keys.unlock("p")
    planted.assert_done(store)
    store.close()


def test_a_thousand_at_once(tmp_path: Path) -> None:
    """Forgetting many contents together leaves no sealed key and no ciphertext of any of them, and frees the space."""
    store = open_store(tmp_path)
    kept: list[Kept] = [put(store, os.urandom(300)) for _ in range(300)]
    canaries = {one.content_id.hex(): ciphertext(store, one)[60:92] for one in kept}
    slots = {f"slot {i}": _sealed_slot(store, tmp_path, kept[i].content_id) for i in (0, 150, 299)}
    packs = b"".join(p.read_bytes() for p in (tmp_path / "content" / "packs").iterdir())
    assert all(c in packs for c in canaries.values())
    store.erase(tuple(one.content_id for one in kept))
    everything = b"".join(p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file())
    assert not any(c in everything for c in (*canaries.values(), *slots.values()))
    assert store.usage().pack_bytes == 0
    store.close()
