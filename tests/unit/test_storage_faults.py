"""Full disks and I/O errors at every call: a typed error, no acknowledgement, nothing lost, forgetting works."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.content_stores import Kept, ciphertext, get, new_id, open_store, put
from support.faulty_files import FaultPlan, FaultyFileSystem, WatchingFileSystem, faulty_sqlite
from walytis_vault.adapters.storage import committer
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.failures import CommitUnknownError
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.domain.errors import ForgottenError, StorageError, StorageFullError, VaultError
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.limits import SEGMENT_BYTES

FULL, BROKEN = errno.ENOSPC, errno.EIO
QUICK_AND_LONG = [
    pytest.param(FULL, 900, id="full-small"),
    pytest.param(BROKEN, 200_000, id="broken-large"),
    pytest.param(BROKEN, 900, id="broken-small", marks=pytest.mark.long),
    pytest.param(FULL, 200_000, id="full-large", marks=pytest.mark.long),
]
ERRORS = [pytest.param(BROKEN, id="broken"), pytest.param(FULL, id="full", marks=pytest.mark.long)]
MOST_CALLS = 80


@pytest.fixture
def plan() -> Iterator[FaultPlan]:
    """Faults for the file system and for SQLite together."""
    made = FaultPlan()
    with faulty_sqlite(made):
        yield made


def each_call(
    tmp_path: Path, plan: FaultPlan, error: int, action: Callable[[DiskContentStore, Kept], None]
) -> Iterator[tuple[DiskContentStore, Kept, VaultError | None]]:
    """Run `action` on fresh stores, with its first, second, … call to the disk failing, until none fails.

    Yields the store still open after the failure, a content that was stored before, and the error.
    """
    for number in range(MOST_CALLS):
        home = tmp_path / str(number)
        plan.count_only()
        store = open_store(home, fs=FaultyFileSystem(plan))
        before = put(store, os.urandom(700))
        plan.fail_call(number, error)
        caught: VaultError | None = None
        try:
            action(store, before)
        except VaultError as e:
            caught = e
        failed = list(plan.failed)
        plan.count_only()
        yield store, before, caught
        store.close()
        if not failed:
            assert number > 2, "the action made hardly any calls: the faults are not wired up"
            return
    raise AssertionError("the action never ran out of calls")


@pytest.mark.parametrize(("error", "size"), QUICK_AND_LONG)
def test_publishing(tmp_path: Path, plan: FaultPlan, error: int, size: int) -> None:
    """Whichever call fails: finish raises our error or the content is there; all else stays; a restart agrees."""
    content_id = ContentId(os.urandom(16))
    done: list[Kept] = []

    def publish(store: DiskContentStore, _: Kept) -> None:
        done.clear()
        done.append(put(store, bytes(size), content_id=content_id))

    for number, (store, before, caught) in enumerate(each_call(tmp_path, plan, error, publish)):
        assert (caught is None) == bool(done)
        assert caught is None or isinstance(caught, StorageError)
        assert get(store, before) == before.data
        if caught is not None:
            assert not store.has_bytes(content_id)
            assert store.content_key(content_id) is None
        store.close()
        again = open_store(tmp_path / str(number), fs=FaultyFileSystem(plan))
        assert get(again, before) == before.data
        if done:
            assert get(again, done[0]) == done[0].data
        else:
            # A commit whose fsync failed may or may not be there; what is there must be whole and usable.
            again.erase((content_id,))
            put(again, b"works again")
        again.close()


@pytest.mark.parametrize(("error", "size"), QUICK_AND_LONG)
def test_forgetting(tmp_path: Path, plan: FaultPlan, error: int, size: int) -> None:
    """Whichever call fails: erase raises our error or is done; a restart finishes it; nothing else is touched."""
    victim: list[Kept] = []
    cipher: list[bytes] = []

    def forget(store: DiskContentStore, _: Kept) -> None:
        plan_number = plan._fail_at
        plan.count_only()
        victim[:] = [put(store, os.urandom(size))]
        cipher[:] = [ciphertext(store, victim[0])]
        plan.fail_call(plan_number or 0, error)
        store.erase((victim[0].content_id,))

    for number, (store, before, caught) in enumerate(each_call(tmp_path, plan, error, forget)):
        assert caught is None or isinstance(caught, StorageError)
        content_id = victim[0].content_id
        if caught is None:
            assert store.erased(content_id)
        assert get(store, before) == before.data
        store.close()
        again = open_store(tmp_path / str(number), fs=FaultyFileSystem(plan))
        if not again.erased(content_id):
            assert get(again, victim[0]) == victim[0].data, "half forgotten after a restart"
        again.erase((content_id,))
        assert again.erased(content_id)
        with pytest.raises(ForgottenError):
            get(again, victim[0])
        assert get(again, before) == before.data
        left = [p for p in (tmp_path / str(number)).rglob("*") if p.is_file() and cipher[0][60:92] in p.read_bytes()]
        assert not left
        again.close()


@pytest.mark.parametrize("error", ERRORS)
def test_compaction(tmp_path: Path, plan: FaultPlan, error: int) -> None:
    """Whichever call of a compaction fails, every living content stays readable, then and after a restart."""
    kept: list[Kept] = []

    def compact(store: DiskContentStore, _: Kept) -> None:
        plan_number = plan._fail_at
        plan.count_only()
        kept[:] = [put(store, os.urandom(400)) for _ in range(6)]
        store.erase((kept[2].content_id,))
        plan.fail_call(plan_number or 0, error)
        store.compact(everything=True)

    for number, (store, before, caught) in enumerate(each_call(tmp_path, plan, error, compact)):
        assert caught is None or isinstance(caught, StorageError)
        living = [before, *kept[:2], *kept[3:]]
        assert all(get(store, one) == one.data for one in living)
        store.close()
        again = open_store(tmp_path / str(number), fs=FaultyFileSystem(plan))
        assert all(get(again, one) == one.data for one in living)
        assert again.erased(kept[2].content_id)
        again.compact(everything=True)
        assert all(get(again, one) == one.data for one in living)
        usage = again.usage()
        assert usage.pack_bytes == usage.pack_live_bytes
        again.close()


@pytest.mark.parametrize("error", [FULL, BROKEN])
def test_forgetting_after_a_compaction_that_failed(tmp_path: Path, plan: FaultPlan, error: int) -> None:
    """Whichever call of a compaction fails, what is forgotten afterwards without a restart leaves no ciphertext."""
    kept: list[Kept] = []
    canaries: list[bytes] = []

    def compact(store: DiskContentStore, _: Kept) -> None:
        plan_number = plan._fail_at
        plan.count_only()
        kept[:] = [put(store, os.urandom(3000)) for _ in range(6)]
        canaries[:] = [ciphertext(store, one)[60:92] for one in kept]
        store.erase((kept[2].content_id,))
        plan.fail_call(plan_number or 0, error)
        store.compact(everything=True)

    for number, (store, before, caught) in enumerate(each_call(tmp_path, plan, error, compact)):
        home = tmp_path / str(number)
        victims = [kept[0], kept[4], kept[5]]
        try:
            store.erase(tuple(one.content_id for one in victims))
        except StorageError:
            # A disk that confirms nothing any more: the next start begins with what this one could not do.
            assert caught is not None, "nothing had failed before"
            store.close()
            store = open_store(home, fs=FaultyFileSystem(plan))
            store.erase(tuple(one.content_id for one in victims))
        files = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
        left = [p.name for p, data in files.items() for n in (0, 2, 4, 5) if canaries[n] in data]
        assert left == []
        living = [before, kept[1], kept[3], put(store, b"goes on")]
        assert all(get(store, one) == one.data for one in living)
        store.close()
        again = open_store(home, fs=FaultyFileSystem(plan))
        assert all(get(again, one) == one.data for one in living)
        again.close()


@pytest.mark.parametrize("error", ERRORS)
def test_receiving_from_peers(tmp_path: Path, plan: FaultPlan, error: int) -> None:
    """Whichever call fails while a ciphertext comes in: our error, and a restart goes on or begins anew."""
    source = open_store(tmp_path / "source")
    kept = put(source, os.urandom(SEGMENT_BYTES))
    leaves, cipher = source.leaf_hashes(kept.content_id), ciphertext(source, kept)

    def receive(store: DiskContentStore, _: Kept) -> None:
        receiver = store.begin_ciphertext(kept.content_id, kept.root, len(cipher))
        try:
            if not receiver.has_leaves:
                receiver.set_leaves(leaves)
            for number in receiver.missing():
                receiver.write_segment(number, cipher[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES])
            receiver.finish()
        finally:
            receiver.close()

    for number, (store, before, caught) in enumerate(each_call(tmp_path, plan, error, receive)):
        assert caught is None or isinstance(caught, StorageError)
        assert store.has_bytes(kept.content_id) == (caught is None)
        store.close()
        again = open_store(tmp_path / str(number), fs=FaultyFileSystem(plan))
        if not again.has_bytes(kept.content_id):
            receive(again, before)
        assert again.verify(kept.content_id, kept.root)
        assert get(again, before) == before.data
        again.close()
    source.close()


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "sqlite sync"])
def test_a_failed_fsync_ends_writing(tmp_path: Path, plan: FaultPlan, call: str) -> None:
    """After a failed fsync nothing is acknowledged any more, reading goes on, and a restart mends it."""
    store = open_store(tmp_path, fs=FaultyFileSystem(plan))
    kept = put(store, b"before")
    size = 100 if call != "fsync" else 200_000
    plan.fail_next(call, errno.EIO)
    with pytest.raises(StorageError):
        put(store, bytes(size))
    assert plan.failed == [call]
    plan.count_only()
    with pytest.raises(StorageError, match="restart"):
        put(store, b"later")
    with pytest.raises(StorageError, match="restart"):
        store.erase((kept.content_id,))
    assert get(store, kept) == b"before"
    store.close()
    again = open_store(tmp_path, fs=FaultyFileSystem(plan))
    put(again, b"later")
    again.erase((kept.content_id,))
    again.close()


@pytest.mark.parametrize("what", ["bytes", "key"])
def test_what_an_unknown_commit_names_is_left_alone(tmp_path: Path, plan: FaultPlan, what: str) -> None:
    """A commit that failed and stands after a kill all the same names whole bytes, or a key that is there."""
    source = open_store(tmp_path / "source")
    kept = put(source, os.urandom(2000))
    cipher, key = ciphertext(source, kept), source.content_key(kept.content_id)
    assert key is not None
    store = open_store(tmp_path / "home", fs=FaultyFileSystem(plan))

    def receive(into: DiskContentStore) -> None:
        if what == "key":
            into.put_key(kept.content_id, key)
        else:
            receiver = into.begin_ciphertext(kept.content_id, kept.root, len(cipher))
            receiver.write_segment(0, cipher)
            receiver.finish()

    told: list[StorageError] = []
    store.on_failure(told.append)
    plan.fail_next("sqlite sync", errno.EIO)
    with pytest.raises(CommitUnknownError):
        receive(store)
    plan.count_only()
    assert [type(e) for e in told] == [CommitUnknownError]
    with pytest.raises(StorageError, match="restart"):
        put(store, os.urandom(2000))
    shutil.copytree(tmp_path / "home", tmp_path / "killed")
    again = open_store(tmp_path / "killed")
    if what == "key":
        again.put_key(kept.content_id, key)
        assert again.content_key(kept.content_id) == key
    else:
        assert again.has_bytes(kept.content_id), "the commit is in the log that SQLite recovers from"
        assert again.verify(kept.content_id, kept.root)
    for one in (again, store, source):
        one.close()


def test_a_disk_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers get StorageError after the bound; what the disk takes later is destroyed, and all goes on."""
    disk = HangingFileSystem()
    store = open_store(tmp_path, fs=disk)
    kept = put(store, b"before")
    disk.hang()
    monkeypatch.setattr(committer, "WAIT_S", 0.3)
    ids = [new_id() for _ in range(5)]
    with ThreadPoolExecutor(len(ids)) as threads:
        waiting = [threads.submit(put, store, b"x" * 500, content_id=i) for i in ids]
        for future in waiting:
            with pytest.raises(StorageError, match="did not take it"):
                future.result(30)
    assert get(store, kept) == b"before"
    monkeypatch.setattr(committer, "WAIT_S", 60.0)
    disk.go_on()
    later = put(store, b"later")
    assert get(store, later) == b"later"
    assert not any(store.has_bytes(i) for i in ids)
    assert store.usage().keys == 2
    store.close()
    again = open_store(tmp_path)
    assert [get(again, one) for one in (kept, later)] == [b"before", b"later"]
    assert again.usage().keys == 2
    again.close()


class HangingFileSystem(OsFileSystem):
    """A disk whose fdatasync does not return while it hangs."""

    def __init__(self) -> None:
        """Begin well."""
        self._going = threading.Event()
        self._going.set()

    def hang(self) -> None:
        """From now on."""
        self._going.clear()

    def go_on(self) -> None:
        """Until now."""
        self._going.set()

    def fdatasync(self, fd: int) -> None:
        """See the port."""
        assert self._going.wait(30)
        super().fdatasync(fd)


def fill(store: DiskContentStore, size: int) -> None:
    """Publish until the disk refuses."""
    for _ in range(100):
        put(store, bytes(size))


@pytest.mark.parametrize("free", [0, 3_000, 20_000])
@pytest.mark.parametrize("count", [1, 300])
def test_forgetting_on_a_full_disk(tmp_path: Path, plan: FaultPlan, free: int, count: int) -> None:
    """With the disk full, publishing is refused, reading works, forgetting works, and a restart works."""
    store = open_store(tmp_path, fs=FaultyFileSystem(plan))
    kept = [put(store, os.urandom(600)) for _ in range(count)] + [put(store, os.urandom(200_000))]
    plan.full_beyond(tmp_path, free)
    for size in (300_000, 60_000):
        with pytest.raises(StorageFullError):
            fill(store, size)
    assert all(get(store, one) == one.data for one in kept)
    store.erase(tuple(one.content_id for one in kept[1:]))
    assert all(store.erased(one.content_id) for one in kept[1:])
    assert get(store, kept[0]) == kept[0].data
    store.close()
    again = open_store(tmp_path, fs=FaultyFileSystem(plan))
    assert get(again, kept[0]) == kept[0].data
    again.erase((kept[0].content_id,))
    assert again.erased(kept[0].content_id)
    again.close()


def test_what_the_index_names_is_durable_before(tmp_path: Path, plan: FaultPlan) -> None:
    """Files, folders and slots are synced before the index speaks of them, and at each acknowledgement."""
    source = open_store(tmp_path / "source")
    coming = put(source, os.urandom(SEGMENT_BYTES))
    watch = WatchingFileSystem(plan)
    store = open_store(tmp_path / "watched", fs=watch)
    watch.assert_durable()
    kept = []
    for size in (100, 60_000, 200_000, 3_000_000, 100):
        kept.append(put(store, bytes(size)))
        watch.assert_durable()
    receiver = store.begin_ciphertext(coming.content_id, coming.root, coming.stored.ciphertext_length)
    receiver.set_leaves(source.leaf_hashes(coming.content_id))
    for number in receiver.missing():
        segment = source.read_ciphertext(coming.content_id, number * SEGMENT_BYTES, SEGMENT_BYTES)
        receiver.write_segment(number, segment)
    receiver.finish()
    watch.assert_durable()
    store.erase((kept[0].content_id, kept[2].content_id))
    watch.assert_durable()
    store.compact(everything=True)
    watch.assert_durable()
    store.drop_bytes(kept[3].content_id)
    watch.assert_durable()
    SecretsFile(tmp_path, VaultKeys.create(tmp_path / "keys", watch, None), watch).seal_secrets({"a": b"b"})
    watch.assert_durable()
    store.close()
    source.close()
