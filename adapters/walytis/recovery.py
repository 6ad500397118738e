"""Makes the files below a node whole again before they are opened, after a kill or a power cut (security.md U7).

Upstream rewrites small files in place and gives up on a chain whose last index record was torn; kubo's blocks are
written without a sync for each. So: torn index files are cut to their whole records, torn small files restored or
dropped, half-made chains put aside, and after a reboot the blocks written since the last sync are held against
their hashes. Nothing that was acknowledged is lost: batches lie in our own durable index before they lie here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from walytis_vault.adapters.walytis import block_ids, index_files, unixfs, upstream
from walytis_vault.adapters.walytis.block_store import BlockStore, write_whole
from walytis_vault.adapters.walytis.files import read_text, replace_file, storage_error
from walytis_vault.domain.errors import UntrustedInputError, VaultError

SYNC_EVERY: Final = 15.0
"""Seconds between syncs of the file system while blocks are written."""
SLACK: Final = 120.0
"""Seconds by which file times are trusted less than the state file."""
TAIL_FILES: Final = 10
"""Index files, of 1,000 blocks each, that are looked at again after a reboot."""
SMALL_FILES: Final = ("Config.json", "Invitations.json", "IPFS-Peers.json")
MAX_SMALL_FILE: Final = 16 << 20
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class State(msgspec.Struct, frozen=True):
    """What the last run left: which boot of the machine it was, and when everything was on disk last."""

    boot: str
    synced: float


def recover(home: Path) -> list[str]:
    """Repair what a crash may have torn. Call before upstream is loaded.

    Args:
        home: the vault's home, with its folders `ipfs`, `walytis` and `walytis-index`.
    Returns:
        A sentence for each thing that was repaired.
    Raises:
        StorageError: something cannot be read or repaired.
    """
    done: list[str] = []
    state = _read_state(home)
    rebooted = state is not None and state.boot != boot_id()
    try:
        if rebooted and state is not None:
            done += _drop_torn_blocks(home, since=state.synced - SLACK)
        for folder in sorted((home / "walytis").iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                done += _recover_chain(home, folder, rebooted)
    except OSError as e:
        raise storage_error(e, f"check {home} after a crash") from e
    for line in done:
        upstream.logger.warning("%s", line)
    return done


def boot_id() -> str:
    """A text that changes when the machine starts anew; empty where there is none."""
    return (read_text(_BOOT_ID, limit=100) or "").strip()


def _recover_chain(home: Path, folder: Path, rebooted: bool) -> list[str]:
    done = []
    # A kill while upstream packs a zip leaves the invitations beside the folder; it would then delete them.
    aside = folder.parent / f"{folder.name}Invitations.json"
    if aside.exists():
        aside.replace(folder / "Invitations.json")
        done.append(f"brought back the invitations of chain {folder.name}")
    for name in SMALL_FILES:
        done += _recover_small_file(folder / name, good_copy(home / "walytis-index", folder / name))
    seen = _seen(home / "walytis-index" / f"{folder.name}.db")
    records = folder / "KnownBlocksIndex"
    for name in index_files.names(records):
        path = records / name
        start = seen.get(name, 0)
        if path.stat().st_size < start or not index_files.is_whole(path, start):
            dropped = index_files.repair(path)
            done.append(f"dropped {dropped} torn bytes from the block list of chain {folder.name}")
    done += _complete_tail(home, folder, {} if rebooted else seen)
    if not begins_with_genesis(folder):
        target = home / "walytis-broken" / f"{folder.name}-{time.time_ns()}"
        target.parent.mkdir(mode=0o700, exist_ok=True)
        folder.rename(target)
        done.append(f"put the half-made chain {folder.name} aside, in {target}")
    return done


def _complete_tail(home: Path, folder: Path, seen: dict[str, int]) -> list[str]:
    """See that recorded blocks are there, for upstream records a block before it writes its file.

    A block without a file is taken for unknown, and everything built on it with it. Its file is made again from
    IPFS's store; where that lacks it too the record goes, so that nobody builds on what no peer can get.
    """
    store, done = BlockStore(home / "ipfs"), []
    lost: set[bytes] = set()
    names = index_files.names(folder / "KnownBlocksIndex")
    for name in names[-TAIL_FILES:]:
        path = folder / "KnownBlocksIndex" / name
        start, kept = seen.get(name, 0), bytearray()
        before = len(lost)
        for record in index_files.records(path, start):
            parents = {block_ids.key_of_short(parent) for parent in block_ids.parents_of(record.long_id)}
            if parents & lost or not _has_file(folder, record.long_id, store, check=not seen):
                lost.add(block_ids.key_of(record.long_id))
            else:
                kept += index_files.encode(record.long_id)
        if len(lost) > before:
            replace_file(path, path.read_bytes()[:start] + bytes(kept))
            done.append(f"dropped {len(lost) - before} blocks of chain {folder.name} that were never written")
    return done


def _has_file(folder: Path, long_id: bytes, store: BlockStore, *, check: bool) -> bool:
    try:
        cid = block_ids.cid_of(long_id)
        path = folder / "ReceivedBlocks" / cid[:4] / cid
        if path.exists() and (not check or unixfs.cid_of(path.read_bytes()) == cid):
            return True
        data = store.get(cid)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        return True
    except (VaultError, OSError):
        return False


def _recover_small_file(path: Path, good: Path) -> list[str]:
    """Upstream's small JSON files: a damaged one is replaced by its last good copy, or dropped."""
    text = read_text(path, limit=MAX_SMALL_FILE)
    if text is None and not path.exists():
        return []
    if _is_json(text):
        return []
    copy = read_text(good, limit=MAX_SMALL_FILE)
    if copy is not None and _is_json(copy):
        replace_file(path, copy.encode())
        return [f"restored {path.name} of chain {path.parent.name} from its good copy"]
    path.unlink()
    return [f"dropped the torn {path.name} of chain {path.parent.name}"]


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    return True


def good_copy(index_folder: Path, path: Path) -> Path:
    """Where the last good copy of a small file of a chain lies: not beside it, for upstream gives that folder away."""
    return index_folder / f"{path.parent.name}.{path.name}.good"


def save_json(path: Path, content: Any, index_folder: Path) -> None:
    """Replace one of upstream's small files durably, and keep a good copy of it."""
    data = json.dumps(content).encode()
    replace_file(path, data)
    replace_file(good_copy(index_folder, path), data)


def begins_with_genesis(folder: Path) -> bool:
    """Whether a chain's folder holds, as its first block, the one that the folder is named after."""
    for name in index_files.names(folder / "KnownBlocksIndex"):
        with contextlib.suppress(UntrustedInputError):
            for record in index_files.records(folder / "KnownBlocksIndex" / name):
                return block_ids.cid_of(record.long_id) == folder.name and not block_ids.parents_of(record.long_id)
    return False


def _seen(database: Path) -> dict[str, int]:
    """How far our index had read each index file; it reads whole records only."""
    if not database.exists():
        return {}
    try:
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            rows: Any = connection.execute("SELECT name, seen FROM files").fetchall()
        finally:
            connection.close()
    except apsw.Error:
        return {}
    return {str(name): int(seen) for name, seen in rows}


def _drop_torn_blocks(home: Path, since: float) -> list[str]:
    """After a power cut: remove stored nodes that are not what their names say, and store their blocks again."""
    dropped = 0
    for folder in os.scandir(home / "ipfs" / "blocks"):
        if not folder.is_dir():
            continue
        for entry in os.scandir(folder.path):
            if entry.stat().st_mtime < since:
                continue
            if entry.name.startswith("temp-") or not unixfs.matches_flatfs_name(
                entry.name, Path(entry.path).read_bytes()
            ):
                os.unlink(entry.path)
                dropped += 1
    for database in (home / "walytis-index").glob("*.waiting.db*"):
        database.unlink()
    for database in (home / "walytis-index").glob("*.db"):
        with contextlib.suppress(apsw.Error):
            connection = apsw.Connection(str(database))
            connection.execute(
                "UPDATE blocks SET stored = 0 WHERE file IN (SELECT number FROM files ORDER BY name DESC LIMIT 10)"
            )
            connection.close()
    return [f"dropped {dropped} blocks that the power cut tore; they are stored again"] if dropped else []


def _read_state(home: Path) -> State | None:
    text = read_text(home / "walytis-index" / "state.json", limit=4096)
    try:
        return msgspec.json.decode(text or "", type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class Syncer:
    """Brings what is written to disk every now and then, and notes when."""

    def __init__(self, home: Path) -> None:
        """Begin; `written` says that there is something to sync."""
        self._home = home
        self._written = threading.Event()
        self.sync()
        threading.Thread(target=self._run, name="sync-blocks", daemon=True).start()

    def written(self) -> None:
        """Something was written."""
        self._written.set()

    def sync(self) -> None:
        """Sync the file system of the home. Raises StorageError."""
        before = time.time()
        sync_file_system(self._home)
        replace_file(self._home / "walytis-index" / "state.json", msgspec.json.encode(State(boot_id(), before)))

    def _run(self) -> None:
        while True:
            self._written.wait()
            time.sleep(SYNC_EVERY)
            self._written.clear()
            with contextlib.suppress(Exception):  # the next sync, or the check after a reboot, makes up for it
                self.sync()


def sync_file_system(folder: Path) -> None:
    """Write all cached data of the folder's file system to disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs = getattr(ctypes.CDLL(None), "syncfs", None)
        if syncfs is None:
            os.sync()
        else:
            syncfs(fd)
    finally:
        os.close(fd)
