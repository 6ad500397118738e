"""Forgetting, dropping and locking while other threads are in the middle of something: nobody waits for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from support.content_stores import AUTHOR, ciphertext, get, new_id, open_store, put
from walytis_vault.adapters.crypto.descriptor import Descriptor
from walytis_vault.adapters.storage.blob_sink import BlobSink
from walytis_vault.adapters.storage.ciphertext_writer import CiphertextWriter
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.domain import faults
from walytis_vault.domain.errors import ConflictError, ForgottenError, LockedError, VaultError
from walytis_vault.domain.limits import SEGMENT_BYTES

WAIT_S = 30


@pytest.fixture(autouse=True)
def no_faults_left() -> Iterator[None]:
    """Take the fault hook away again."""
    yield
    faults.install(None)


def in_background(action: Callable[[], object]) -> Future[object]:
    """Run in a daemon thread, so that a deadlock fails the test and does not hang it."""
    done: Future[object] = Future()

    def run() -> None:
        try:
            done.set_result(action())
        except BaseException as e:
            done.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return done


def coming_in(store: DiskContentStore, source: DiskContentStore) -> tuple[CiphertextWriter, bytes]:
    """A content of three segments that begins to come from `source`, and its ciphertext."""
    kept = put(source, os.urandom(3 * SEGMENT_BYTES))
    cipher = ciphertext(source, kept)
    receiver = store.begin_ciphertext(kept.content_id, kept.root, len(cipher))
    receiver.set_leaves(source.leaf_hashes(kept.content_id))
    return receiver, cipher


def test_a_segment_that_comes_on_a_full_disk_does_not_hold_up_forgetting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the reserved space a segment waits for the store's lock, and forgetting goes on."""
    source, here = open_store(tmp_path / "source"), open_store(tmp_path / "here")
    receiver, cipher = coming_in(here, source)
    (content_id,) = here._state.index.partials()
    here._ballast.give_up()
    writing: list[Future[object]] = []
    asking = threading.Event()
    check_room = here._state.check_room

    def check_and_tell(size: int = 0) -> None:
        asking.set()
        check_room(size)

    def while_forgetting(name: str) -> None:
        if name == "forget.after_mark":
            writing.append(in_background(lambda: receiver.write_segment(0, cipher[:SEGMENT_BYTES])))
            assert asking.wait(WAIT_S)  # from here on it wants the store's lock, which is ours

    monkeypatch.setattr(here._state, "check_room", check_and_tell)
    faults.install(while_forgetting)
    in_background(lambda: here.erase((content_id,))).result(WAIT_S)
    with pytest.raises(ForgottenError):
        writing[0].result(WAIT_S)
    assert here.erased(content_id)
    here.close()
    source.close()


@pytest.mark.parametrize("large", [True, False])
def test_dropped_while_its_commit_waits(tmp_path: Path, large: bool) -> None:
    """A download that is complete and dropped before it is committed leaves no row that no file stands for."""
    source, here = open_store(tmp_path / "source"), open_store(tmp_path / "here")
    kept = put(source, os.urandom(SEGMENT_BYTES if large else 900))
    cipher = ciphertext(source, kept)
    receiver = here.begin_ciphertext(kept.content_id, kept.root, len(cipher))
    receiver.set_leaves(source.leaf_hashes(kept.content_id))
    for number in receiver.missing():
        receiver.write_segment(number, cipher[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES])
    waiting = threading.Event()
    faults.install(lambda name: waiting.set() if name == ("receive.after_rename" if large else name) else None)
    with here._state.lock:
        finishing = in_background(receiver.finish)
        assert waiting.wait(WAIT_S)
        here.drop_bytes(kept.content_id)
    try:
        finishing.result(WAIT_S)
    except ConflictError:
        assert not here.has_bytes(kept.content_id)
        assert here.dropped(kept.content_id)
    else:
        assert not large
        assert here.verify(kept.content_id, kept.root)
    here.close()
    source.close()


@pytest.mark.parametrize("size", [30_000, 2_000_000])
def test_an_upload_that_is_locked_out_leaves_nothing_in_memory(tmp_path: Path, size: int) -> None:
    """A lock during uploads takes plaintext and keys of all of them out of the store's objects, and their files."""
    store = open_store(tmp_path, passphrase="p")
    writers = [store.writer(new_id(), author=AUTHOR) for _ in range(5)]
    for writer in writers:
        writer.write(b"PLAINTEXT" * (size // 9))
    store.lock()
    assert store._state._handles == {}
    assert all(not w._buffer and w._secrets is None for w in writers)
    assert list((tmp_path / "content" / "blobs").iterdir()) == []
    for writer in writers:
        sealing = partial(writer.seal_descriptor, Descriptor(length=1))
        for attempt in (partial(writer.write, b"x"), writer.finish, sealing):
            with pytest.raises(LockedError, match="meanwhile"):
                attempt()
        writer.abort()
    store.unlock("p")
    kept = put(store, b"goes on")
    assert get(store, kept) == b"goes on"
    assert store.usage().contents == 1
    store.close()


def test_locked_while_the_file_of_an_upload_is_made(tmp_path: Path) -> None:
    """A lock between the look-up and the new file's first use leaves neither file nor descriptor."""
    store = open_store(tmp_path, passphrase="p")
    writer = store.writer(new_id(), author=AUTHOR)
    faults.install(lambda name: store.lock() if name == "publish.after_create" else None)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LockedError):
        writer.write(bytes(200_000))
    assert list((tmp_path / "content" / "blobs").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
    store.close()


class Settling(BlobSink):
    """A blob whose last piece is settled by the writing thread just when somebody else has seen that it is not."""

    looks = 0

    @property
    def _pending(self) -> Future[None] | None:
        self.looks += 1
        done: Future[None] = Future()
        done.set_result(None)
        return done if self.looks == 1 else None

    @_pending.setter
    def _pending(self, _: Future[None] | None) -> None:
        pass


def test_cut_off_while_a_piece_is_settled(tmp_path: Path) -> None:
    """Whoever cuts an upload off does not stumble over the thread that writes it."""
    store = open_store(tmp_path)
    Settling(store._state, new_id()).abort()
    assert list((tmp_path / "content" / "blobs").iterdir()) == []
    store.close()


@pytest.mark.parametrize("size", [900, 200_000])
def test_locked_while_an_upload_is_committed(tmp_path: Path, size: int) -> None:
    """It is stored whole or refused; there is never a row without its file, nor a file without its row."""
    store = open_store(tmp_path, passphrase="p")
    content_id = new_id()
    writer = store.writer(content_id, author=AUTHOR)
    writer.write(os.urandom(size))
    waiting = threading.Event()
    faults.install(lambda name: waiting.set() if name in ("publish.after_rename", "publish.after_pack_write") else None)
    with ThreadPoolExecutor(1) as threads:
        if size > 100_000:
            with store._state.lock:
                finishing = threads.submit(writer.finish)
                assert waiting.wait(WAIT_S)
                store.lock()
        else:
            finishing = threads.submit(writer.finish)
            assert waiting.wait(WAIT_S)
            store.lock()
        try:
            stored = finishing.result(WAIT_S)
        except VaultError:
            assert not store.has_bytes(content_id)
        else:
            assert store.verify(content_id, stored.root)
    assert len(list((tmp_path / "content" / "blobs").iterdir())) == (size > 100_000 and store.has_bytes(content_id))
    store.unlock("p")
    store.erase((content_id,))
    assert list((tmp_path / "content" / "blobs").iterdir()) == []
    store.close()


def test_readers_and_writers_that_ended_are_not_kept(tmp_path: Path) -> None:
    """However a reader or writer ends, the store keeps no reference to it."""
    store = open_store(tmp_path, passphrase="p")
    kept = put(store, os.urandom(2 * SEGMENT_BYTES))
    s = kept.stored
    reader = store.reader(s.content_id, author=AUTHOR, root=s.root, length=s.length, padded_length=s.padded_length)
    assert reader.read()
    store.lock()
    with pytest.raises(LockedError):
        reader.read()
    assert store._state._handles == {}
    store.close()
