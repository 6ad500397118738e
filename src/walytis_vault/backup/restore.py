"""Makes a home of a backup: every byte held against the manifest, and what was forgotten since forgotten again.

Works on files alone, with no node. It refuses to restore while the node that the backup is of still runs on this
machine. The home that comes out has a note in it, and its node does not serve before it has come back
(`coming_back`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw
import msgspec

from walytis_vault.adapters.storage.atomic_file import replace_file
from walytis_vault.adapters.storage.content_store import INDEX_FILE, DiskContentStore
from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.recovery import sync_file_system
from walytis_vault.backup import manifest as m
from walytis_vault.bus.security import LOCAL, add_client
from walytis_vault.domain.errors import ConflictError, MisuseError, StorageError, VaultError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId
from walytis_vault.home import Home

PIECE: Final = 1 << 20
AT_ONCE: Final = 256
"""Contents that are forgotten in one step."""
TOP: Final = frozenset({"vault.json", "keys", "store", "log.sqlite", "walytis", "identity", "peers"})
CONFIG: Final = "vault.json"


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored."""

    vault_id: str
    home: str
    position: int
    contents: int
    forgotten: int
    """Contents of the backup that were forgotten again."""
    taken_ms: int


class RestoredNote(msgspec.Struct, frozen=True, kw_only=True):
    """Stands in a restored home until its node has come back."""

    taken_ms: int
    alone: bool
    """Whether it may serve without having heard from another member's node."""


def restore_backup(
    folder: Path,
    home_path: Path,
    *,
    passphrase: str | None = None,
    alone: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Restored:
    """Make a home of a backup, in an empty folder.

    Args:
        passphrase: what opens the backup; None for one with a key file.
        alone: let its node serve even if no other member's node can be heard from.
        progress: told (bytes done, bytes in total).
    Raises:
        MisuseError: there is no backup, or the home holds something. WrongPassphraseError, LockedError.
        ConflictError: the node that the backup is of still runs on this machine.
        StorageError: the backup is damaged, or the home cannot be written; nothing of it remains.
    """
    fs = OsFileSystem()
    folder = Path(os.path.realpath(folder))
    manifest = m.read_manifest(folder, fs)
    if manifest is None:
        raise MisuseError(f"there is no complete backup in {folder}")
    _refuse_beside(Path(manifest.home), manifest.vault_id)
    keys = VaultKeys.open(folder / manifest.data / "keys", fs, passphrase)
    key = keys.subkey(m.LABEL)
    m.check_manifest(manifest, key)
    gone = m.ForgottenList(folder, key, fs, threading.Lock()).read() | _gone_in(Path(manifest.home), manifest.vault_id)

    home = Home(home_path, fs)
    home.begin_making()
    try:
        _copy(folder / manifest.data, manifest, home.path, progress)
        fault("restore.after_copy")
        config = home.config_in(home.path / (CONFIG + ".restored"))
        if config.vault_id != manifest.vault_id or config.device != manifest.device:
            raise StorageError("the backup's files are of another vault than its manifest: do not use it")
        store = DiskContentStore.open(
            home.store,
            vault_id=config.vault_id,
            keys=VaultKeys.open(home.keys, fs, passphrase),
            fs=fs,
            clock=SystemClock(),
            randomness=SystemRandomness(),
        )
        try:
            again = sorted(ContentId(c) for c in gone - store.gone_ids())
            for start in range(0, len(again), AT_ONCE):
                store.erase(tuple(again[start : start + AT_ONCE]))
        finally:
            store.close()
        add_client(home.bus, LOCAL)
        note = RestoredNote(taken_ms=manifest.taken_ms, alone=alone)
        replace_file(fs, home.restored_note, msgspec.json.encode(note))
        with storage_errors("write the restored home"):
            (home.path / (CONFIG + ".restored")).unlink()
            sync_file_system(home.path)
        fault("restore.before_config")
        home.end_making(config)
    except VaultError:
        home.abandon_making()
        raise
    except OSError as e:
        home.abandon_making()
        raise StorageError(f"cannot restore into {home.path}: {e.strerror or e}") from e
    finally:
        home.release()
    return Restored(
        vault_id=config.vault_id,
        home=str(home.path),
        position=manifest.position,
        contents=manifest.contents,
        forgotten=len(again),
        taken_ms=manifest.taken_ms,
    )


def _copy(data: Path, manifest: m.Manifest, home: Path, progress: Callable[[int, int], None]) -> None:
    total, done = sum(f.size for f in manifest.files), 0
    for file in manifest.files:
        if file.path.partition("/")[0] not in TOP:
            raise StorageError(f"the backup names a file {file.path[:80]!r}, which no backup has")
        # The home counts as one from the moment in which its vault.json is there: that comes last.
        name = CONFIG + ".restored" if file.path == CONFIG else file.path
        done += _copy_one(m.plain_path(data, file.path), m.plain_path(home, name), file)
        progress(done, total)


def _copy_one(source: Path, target: Path, file: m.File) -> int:
    digest, size = hashlib.sha256(), 0
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as e:
        raise StorageError(f"the backup lacks {file.path} ({e.strerror}): it cannot be restored") from e
    with os.fdopen(fd, "rb") as read, storage_errors(f"write {target}"):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(made, "wb") as write:
            while piece := read.read(PIECE):
                size += len(piece)
                if size > file.size:
                    break
                digest.update(piece)
                write.write(piece)
    if size != file.size or digest.hexdigest() != file.sha256:
        raise StorageError(f"{file.path} in the backup is damaged: it cannot be restored")
    return size


def _refuse_beside(original: Path, vault_id: str) -> None:
    """Two nodes with one identity would contradict each other. Raises ConflictError."""
    if _vault_of(original) != vault_id:
        return
    with contextlib.suppress(OSError), open(original / "node.lock", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ConflictError(
                f"the node that this backup is of runs on {original}: stop it first, and do not start it again"
            ) from e


def _gone_in(original: Path, vault_id: str) -> set[bytes]:
    """What the home that the backup is of has forgotten, if it still is there and can be read."""
    if _vault_of(original) != vault_id:
        return set()
    try:
        flags = apsw.SQLITE_OPEN_READONLY
        connection = apsw.Connection(str(original / "store" / INDEX_FILE), flags=flags)
        try:
            sql = "SELECT content_id FROM forgotten UNION SELECT content_id FROM forgetting"
            return {bytes(row[0]) for row in connection.execute(sql) if isinstance(row[0], bytes)}
        finally:
            connection.close()
    except (apsw.Error, OSError) as e:
        raise StorageError(
            f"what {original} has forgotten since the backup cannot be read ({e}): repair it, or move it away"
        ) from e


def _vault_of(home: Path) -> str | None:
    try:
        return Home(home, OsFileSystem()).config().vault_id
    except (VaultError, OSError):
        return None
