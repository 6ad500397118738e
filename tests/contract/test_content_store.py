"""The contract of every content store: the one on disk and the one in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.content_stores import AUTHOR, Kept, ciphertext, get, memory_store, new_id, open_store, put
from walytis_vault.adapters.crypto.content_cipher import ciphertext_length, padded_length
from walytis_vault.adapters.crypto.descriptor import Descriptor
from walytis_vault.adapters.storage.replica import ReplicaStore
from walytis_vault.domain.errors import (
    ConflictError,
    DamagedContentError,
    ForgottenError,
    MisuseError,
    NotYetAvailableError,
    UntrustedInputError,
)
from walytis_vault.domain.ids import ContentId, ContentKey, Root
from walytis_vault.domain.limits import SEGMENT_BYTES

MakeStore = Callable[[], ReplicaStore]


@pytest.fixture(params=["disk", "memory"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    """Makes stores of one kind, each with its own home; closes them."""
    made: list[ReplicaStore] = []

    def make() -> ReplicaStore:
        store: ReplicaStore = memory_store() if request.param == "memory" else open_store(tmp_path / str(len(made)))
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> ReplicaStore:
    """One store."""
    return make_store()


SIZES = [0, 1, 255, 256, 257, 16_383, 16_384, 65_535, 65_536, 65_537, 300_000, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 5]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_comes_back(store: ReplicaStore, size: int) -> None:
    """Contents of any size, the empty one too, come back byte for byte."""
    kept = put(store, os.urandom(size))
    assert get(store, kept) == kept.data
    assert kept.stored.length == size
    assert kept.stored.padded_length == padded_length(size)
    assert kept.stored.ciphertext_length == ciphertext_length(padded_length(size))
    assert store.has_bytes(kept.content_id)
    assert store.verify(kept.content_id, kept.root)


def test_the_reader_tells_the_length_and_ends_for_good(store: ReplicaStore) -> None:
    """A reader knows the true length, hands out pieces of at most 1 MiB, and stays at its end."""
    kept = put(store, os.urandom(2 * SEGMENT_BYTES))
    s = kept.stored
    reader = store.reader(s.content_id, author=AUTHOR, root=s.root, length=s.length, padded_length=s.padded_length)
    assert reader.length == s.length
    while piece := reader.read():
        assert len(piece) <= SEGMENT_BYTES
    assert reader.read() == b""
    reader.close()
    reader.close()
    with pytest.raises(MisuseError):
        reader.read()


def test_the_header_is_the_beginning_of_the_ciphertext(store: ReplicaStore) -> None:
    """What the event records as salt and commitment is what lies in the store."""
    kept = put(store, b"some words")
    assert ciphertext(store, kept)[:56] == kept.stored.header
    assert len(ciphertext(store, kept)) == kept.stored.ciphertext_length


def test_two_equal_contents_look_different(store: ReplicaStore) -> None:
    """Nothing that is stored lets anyone see that two contents are equal."""
    first, second = put(store, b"the same"), put(store, b"the same")
    assert first.root != second.root
    assert first.stored.header != second.stored.header
    assert first.stored.padded_length == put(store, b"another").stored.padded_length


@pytest.mark.parametrize("size", [100, 200_000])
def test_nothing_is_there_before_finish(store: ReplicaStore, size: int) -> None:
    """A content exists only once finish returned; aborting leaves nothing."""
    content_id = new_id()
    writer = store.writer(content_id, author=AUTHOR)
    writer.write(bytes(size))
    assert not store.has_bytes(content_id)
    assert store.content_key(content_id) is None
    writer.abort()
    writer.abort()
    assert not store.has_bytes(content_id)
    with pytest.raises(MisuseError):
        writer.write(b"more")
    put(store, b"again", content_id=content_id)


def test_a_content_id_is_used_once(store: ReplicaStore) -> None:
    """A second content under the same id is refused, and the first stays whole."""
    kept = put(store, b"first")
    for data in (b"second", os.urandom(200_000)):
        with pytest.raises(ConflictError):
            put(store, data, content_id=kept.content_id)
    assert get(store, kept) == b"first"


def test_odd_ids_are_refused(store: ReplicaStore) -> None:
    """Content ids are 16 bytes."""
    for bad in (b"", b"short", bytes(17)):
        with pytest.raises(MisuseError):
            store.writer(ContentId(bad), author=AUTHOR)
        with pytest.raises(MisuseError):
            store.erase((ContentId(bad),))


def test_unknown_content_is_not_yet_available(store: ReplicaStore) -> None:
    """What never came is reported as such, everywhere."""
    unknown = new_id()
    assert not store.has_bytes(unknown)
    assert not store.verify(unknown, Root(bytes(32)))
    assert not store.erased(unknown)
    assert store.content_key(unknown) is None
    with pytest.raises(NotYetAvailableError):
        store.reader(unknown, author=AUTHOR, root=Root(bytes(32)), length=0, padded_length=256)
    with pytest.raises(NotYetAvailableError):
        store.read_ciphertext(unknown, 0, 10)
    with pytest.raises(NotYetAvailableError):
        store.seal_descriptor(unknown, Descriptor(length=0))


@pytest.mark.parametrize("size", [10, 200_000])
def test_the_content_is_bound_to_its_record(store: ReplicaStore, size: int) -> None:
    """Another author, root or length than the record's gives our error and no bytes."""
    kept = put(store, os.urandom(size))
    s = kept.stored
    cases = [
        ("did:walytis:other", s.root, s.length, s.padded_length),
        (AUTHOR, Root(bytes(32)), s.length, s.padded_length),
        (AUTHOR, s.root, s.padded_length + 1, s.padded_length),
        (AUTHOR, s.root, s.length, s.padded_length + 16),
    ]
    for author, root, length, padded in cases:
        with pytest.raises(DamagedContentError):
            store.reader(s.content_id, author=author, root=root, length=length, padded_length=padded).read()


@pytest.mark.parametrize("size", [0, 5_000, 2 * SEGMENT_BYTES])
def test_forgetting_destroys_key_and_bytes(store: ReplicaStore, size: int) -> None:
    """After erase there is no key and no ciphertext, everything says forgotten, and repeating it is fine."""
    kept, other = put(store, os.urandom(size)), put(store, b"stays")
    sealed = store.seal_descriptor(kept.content_id, Descriptor(name="x", length=size))
    assert not store.erased(kept.content_id)
    for _ in range(2):
        store.erase((kept.content_id,))
        assert store.erased(kept.content_id)
        assert store.content_key(kept.content_id) is None
        assert not store.has_bytes(kept.content_id)
        assert not store.verify(kept.content_id, kept.root)
        assert store.open_descriptor(kept.content_id, sealed) is None
        with pytest.raises(ForgottenError):
            get(store, kept)
        with pytest.raises(ForgottenError):
            store.read_ciphertext(kept.content_id, 0, 10)
    assert get(store, other) == b"stays"


def test_forgotten_never_comes_back(store: ReplicaStore) -> None:
    """A forgotten content can neither be written, nor received, nor get a key again."""
    kept, never_here = put(store, b"x"), new_id()
    store.erase((kept.content_id, never_here))
    for content_id in (kept.content_id, never_here):
        with pytest.raises(ForgottenError):
            put(store, b"again", content_id=content_id)
        with pytest.raises(ForgottenError):
            put(store, bytes(200_000), content_id=content_id)
        with pytest.raises(ForgottenError):
            store.begin_ciphertext(content_id, kept.root, kept.stored.ciphertext_length)
        with pytest.raises(ForgottenError):
            store.put_key(content_id, ContentKey(bytes(32)))
        with pytest.raises(ForgottenError):
            store.seal_reason(content_id, "why")


def test_forgetting_cuts_off_whoever_reads_or_writes(store: ReplicaStore) -> None:
    """A reader, a writer and a receiver that are under way get ForgottenError, not bytes."""
    kept = put(store, os.urandom(3 * SEGMENT_BYTES))
    s = kept.stored
    reader = store.reader(s.content_id, author=AUTHOR, root=s.root, length=s.length, padded_length=s.padded_length)
    assert reader.read()
    coming = new_id()
    writer = store.writer(coming, author=AUTHOR)
    writer.write(bytes(200_000))
    received = new_id()
    receiver = store.begin_ciphertext(received, s.root, s.ciphertext_length)
    leaves, first = store.leaf_hashes(s.content_id), store.read_ciphertext(s.content_id, 0, SEGMENT_BYTES)
    receiver.set_leaves(leaves)
    store.erase((s.content_id, coming, received))
    with pytest.raises(ForgottenError):
        reader.read()
    with pytest.raises(ForgottenError):
        writer.write(b"more")
    with pytest.raises(ForgottenError):
        writer.finish()
    with pytest.raises(ForgottenError):
        receiver.write_segment(0, first)
    reader.close()


def test_forgetting_while_others_write(store: ReplicaStore) -> None:
    """Publishing and forgetting from many threads disturb each other in nothing."""
    kept = [put(store, os.urandom(500 + i)) for i in range(20)]
    fresh: list[Kept] = []

    def publish() -> None:
        for i in range(20):
            fresh.append(put(store, os.urandom(100 * i)))

    def forget(part: list[Kept]) -> None:
        for one in part:
            store.erase((one.content_id,))

    threads = [threading.Thread(target=publish) for _ in range(3)]
    threads += [threading.Thread(target=forget, args=(kept[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(fresh) == 60
    assert all(get(store, one) == one.data for one in fresh)
    assert all(store.erased(one.content_id) for one in kept)


def test_descriptor_and_reason_open_where_the_key_is(make_store: MakeStore) -> None:
    """Descriptor and reason open with the content's key, for its id only, and not without it."""
    here, there = make_store(), make_store()
    kept, other = put(here, b"x"), put(here, b"y")
    descriptor = Descriptor(name="plan.txt", media_type="text/plain", labels=("a", "ü"), length=1, note="n")
    sealed, reason = here.seal_descriptor(kept.content_id, descriptor), here.seal_reason(kept.content_id, "wrong file")
    assert here.open_descriptor(kept.content_id, sealed) == descriptor
    assert here.open_reason(kept.content_id, reason) == "wrong file"
    assert here.open_reason(kept.content_id, here.seal_reason(kept.content_id, "")) == ""
    assert there.open_descriptor(kept.content_id, sealed) is None
    assert there.open_reason(kept.content_id, reason) is None
    with pytest.raises(UntrustedInputError):
        here.open_descriptor(other.content_id, sealed)
    with pytest.raises(UntrustedInputError):
        here.open_reason(kept.content_id, sealed)


@pytest.mark.parametrize("size", [1_000, 200_000, 3 * SEGMENT_BYTES])
def test_a_replica_takes_ciphertext_and_key_from_a_peer(make_store: MakeStore, size: int) -> None:
    """Segments in any order, then the key, make the content readable; before that nothing is served."""
    here, there = make_store(), make_store()
    kept = put(here, os.urandom(size))
    receiver = there.begin_ciphertext(kept.content_id, kept.root, kept.stored.ciphertext_length)
    if not receiver.has_leaves:
        receiver.set_leaves(here.leaf_hashes(kept.content_id))
    for number in reversed(receiver.missing()):
        assert not there.has_bytes(kept.content_id)
        with pytest.raises(NotYetAvailableError):
            receiver.finish()
        segment = here.read_ciphertext(kept.content_id, number * SEGMENT_BYTES, SEGMENT_BYTES)
        receiver.write_segment(number, segment)
        receiver.write_segment(number, segment)
    receiver.finish()
    assert there.has_bytes(kept.content_id)
    assert there.verify(kept.content_id, kept.root)
    with pytest.raises(NotYetAvailableError):
        get(there, kept)
    key = here.content_key(kept.content_id)
    assert key is not None
    there.put_key(kept.content_id, key)
    there.put_key(kept.content_id, key)
    assert get(there, kept) == kept.data
    with pytest.raises(ConflictError):
        there.put_key(kept.content_id, ContentKey(bytes(32)))


@pytest.mark.parametrize("size", [1_000, 200_000, 2 * SEGMENT_BYTES])
def test_a_replica_refuses_segments_that_do_not_verify(make_store: MakeStore, size: int) -> None:
    """Changed, swapped, cut or misnumbered segments and wrong leaf hashes are refused; the right ones still fit."""
    here, there = make_store(), make_store()
    kept = put(here, os.urandom(size))
    leaves = here.leaf_hashes(kept.content_id)
    segment = here.read_ciphertext(kept.content_id, 0, SEGMENT_BYTES)
    receiver = there.begin_ciphertext(kept.content_id, kept.root, kept.stored.ciphertext_length)
    for bad_leaves in ([], leaves[:-1], leaves[::-1] + leaves[:1], [bytes(32)] * len(leaves)):
        with pytest.raises(UntrustedInputError):
            receiver.set_leaves(bad_leaves)
    receiver.set_leaves(leaves)
    flipped = bytes([segment[0] ^ 1]) + segment[1:]
    for number, data in [(0, flipped), (0, segment[:-1]), (0, segment + b"x"), (-1, segment), (99, segment), (0, b"")]:
        with pytest.raises(UntrustedInputError):
            receiver.write_segment(number, data)
    if len(leaves) > 1:
        second = here.read_ciphertext(kept.content_id, SEGMENT_BYTES, SEGMENT_BYTES)
        with pytest.raises(UntrustedInputError):
            receiver.write_segment(0, second)
    for number in receiver.missing():
        receiver.write_segment(number, here.read_ciphertext(kept.content_id, number * SEGMENT_BYTES, SEGMENT_BYTES))
    receiver.finish()
    assert there.verify(kept.content_id, kept.root)


def test_an_interrupted_transfer_goes_on(make_store: MakeStore) -> None:
    """A receiver that was closed finds its segments again; one that was aborted begins anew."""
    here, there = make_store(), make_store()
    kept = put(here, os.urandom(4 * SEGMENT_BYTES))
    length = kept.stored.ciphertext_length

    def segment(number: int) -> bytes:
        return here.read_ciphertext(kept.content_id, number * SEGMENT_BYTES, SEGMENT_BYTES)

    receiver = there.begin_ciphertext(kept.content_id, kept.root, length)
    everything = receiver.missing()
    receiver.set_leaves(here.leaf_hashes(kept.content_id))
    receiver.write_segment(2, segment(2))
    receiver.close()
    with pytest.raises(MisuseError):
        receiver.write_segment(0, segment(0))
    again = there.begin_ciphertext(kept.content_id, kept.root, length)
    assert again.missing() == [n for n in everything if n != 2]
    again.abort()
    anew = there.begin_ciphertext(kept.content_id, kept.root, length)
    assert anew.missing() == everything
    anew.abort()


@pytest.mark.parametrize("size", [1_000, 200_000, 2 * SEGMENT_BYTES])
def test_dropping_bytes_is_not_forgetting(make_store: MakeStore, size: int) -> None:
    """Dropped bytes free the space; key and descriptor stay, and the bytes may come back and be dropped again."""
    store, peer = make_store(), make_store()
    kept = put(store, os.urandom(size))
    cipher = ciphertext(store, kept)
    leaves = store.leaf_hashes(kept.content_id)
    assert store.drop_bytes(kept.content_id) == len(cipher)
    assert store.drop_bytes(kept.content_id) == 0
    assert store.dropped(kept.content_id)
    assert not store.has_bytes(kept.content_id)
    assert not store.erased(kept.content_id)
    assert store.content_key(kept.content_id) is not None
    with pytest.raises(NotYetAvailableError):
        get(store, kept)
    receiver = store.begin_ciphertext(kept.content_id, kept.root, len(cipher))
    receiver.set_leaves(leaves)
    for number in receiver.missing():
        receiver.write_segment(number, cipher[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES])
    receiver.finish()
    assert get(store, kept) == kept.data
    assert not store.dropped(kept.content_id)
    assert peer.drop_bytes(kept.content_id) == 0
    assert not peer.dropped(kept.content_id)
    store.drop_bytes(kept.content_id)
    store.erase((kept.content_id,))
    assert not store.dropped(kept.content_id)
    with pytest.raises(ForgottenError):
        store.drop_bytes(kept.content_id)


def test_ciphertext_is_read_within_limits(store: ReplicaStore) -> None:
    """Peers get at most 1 MiB at once, and nothing beyond the end."""
    kept = put(store, b"x")
    length = kept.stored.ciphertext_length
    assert store.read_ciphertext(kept.content_id, length, 10) == b""
    assert len(store.read_ciphertext(kept.content_id, length - 5, 10)) == 5
    for offset, size in [(-1, 10), (0, -1), (0, SEGMENT_BYTES + 1)]:
        with pytest.raises(MisuseError):
            store.read_ciphertext(kept.content_id, offset, size)
    with pytest.raises(MisuseError):
        store.begin_ciphertext(new_id(), kept.root, 10)
    with pytest.raises(MisuseError):
        store.begin_ciphertext(new_id(), kept.root, 1 << 60)
