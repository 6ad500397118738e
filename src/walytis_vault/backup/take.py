"""Takes a backup while the node runs: what was acknowledged before is in it, whole; what comes meanwhile may be.

Order makes it consistent: the log's index, then the chain, then the store's picture, so that nothing speaks of what
is not there (a content is durable before its event is). The manifest comes last, so a taking that was killed is no
backup, and the one before it still is. Blobs and blocks never change, so those that the backup before has are linked
instead of copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from walytis_vault.adapters.storage.atomic_file import read_file, replace_file
from walytis_vault.adapters.storage.content_store import INDEX_FILE, SLOT_FILE, DiskContentStore
from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.recovery import sync_file_system
from walytis_vault.backup import manifest as m
from walytis_vault.bus.messages import BackupInfo
from walytis_vault.domain.errors import BusyError, MisuseError, VaultError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ports import Clock, FileSystem
from walytis_vault.home import Home, VaultConfig

PIECE: Final = 1 << 20
SMALL_FILES: Final = ("vault.json", "keys/secrets.sealed", "peers/addresses.json")
KNOWN: Final = "backups.json"
"""In the home: folders of backups that are told what is forgotten later."""
BLOCKS: Final = "ReceivedBlocks"
_log = logging.getLogger(__name__)


class Backup:
    """Takes backups of one node, one at a time."""

    def __init__(
        self, home: Home, config: VaultConfig, keys: VaultKeys, log: LogIndex, store: DiskContentStore,
        *, fs: FileSystem, clock: Clock,
    ) -> None:  # fmt: skip
        """For the composition root."""
        self._home, self._config, self._keys, self._log, self._store = home, config, keys, log, store
        self._fs, self._clock = fs, clock
        self._code_key = keys.subkey(m.LABEL)
        """Opens nothing: kept, so that backups can be told what is forgotten while the vault is locked."""
        self._lock = threading.Lock()
        self._known_lock = threading.Lock()
        self._forgotten_lock = threading.Lock()

    def run(self, folder: Path, passphrase: str | None, *, with_key_file: bool) -> BackupInfo:
        """Take a backup. See `Client.backup`.

        Raises:
            MisuseError, StorageError, LockedError. BusyError: one is being taken.
        """
        if not self._lock.acquire(blocking=False):
            raise BusyError("a backup is being taken: wait until it is done")
        try:
            folder = m.check_folder(folder, self._home.path)
            key = self._code_key
            before = m.read_manifest(folder, self._fs)
            if before is not None:
                if before.vault_id != self._config.vault_id:
                    raise MisuseError(f"{folder} holds a backup of another vault: choose another folder")
                m.check_manifest(before, key)
            taking = _Taking(folder, before)
            try:
                made, forgotten = self._take(taking, passphrase, with_key_file=with_key_file)
                with storage_errors("write the backup"):
                    sync_file_system(folder)
                fault("backup.before_manifest")
                m.write_manifest(folder, made, key, self._fs)
                fault("backup.after_manifest")
            finally:
                taking.sweep(m.read_manifest(folder, self._fs))
            known = self._forgotten_list(folder)
            self._remember(folder)
            # What was forgotten while it was taken stands in the list; what the picture knows need not.
            known.add(self._store.gone_ids() - forgotten)
            known.keep(set(forgotten))
        finally:
            self._lock.release()
        return BackupInfo(
            folder=str(folder),
            vault_id=made.vault_id,
            position=made.position,
            contents=made.contents,
            files=len(made.files),
            size=sum(f.size for f in made.files),
            copied=taking.copied,
        )

    def _forgotten_list(self, folder: Path) -> m.ForgottenList:
        return m.ForgottenList(folder, self._code_key, self._fs, self._forgotten_lock)

    def note_forgotten(self, content_ids: list[bytes]) -> None:
        """Tell the backups that can be reached what this node has just forgotten; the others are passed over."""
        for folder in self._known():
            try:
                if m.read_manifest(folder, self._fs) is not None:
                    self._forgotten_list(folder).add(content_ids)
            except VaultError as e:
                _log.warning("a backup could not be told what was forgotten: %s", e.code)

    def tell_all(self) -> None:
        """After a start: tell the backups what a crash, or their absence, kept from them."""
        for folder in self._known():
            try:
                if m.read_manifest(folder, self._fs) is not None:
                    known = self._forgotten_list(folder)
                    if left := self._store.gone_ids() - known.read():
                        known.add(left)
            except VaultError as e:
                _log.warning("a backup could not be told what was forgotten: %s", e.code)

    def _take(
        self, taking: _Taking, passphrase: str | None, *, with_key_file: bool
    ) -> tuple[m.Manifest, frozenset[bytes]]:
        home, data = self._home.path, taking.data
        taking.folder_for("keys/x")
        sealed = self._keys.seal_copy(data / "keys", passphrase, with_key_file=with_key_file)
        for path in sorted((data / "keys").iterdir()):
            taking.made(f"keys/{path.name}")
        position = self._log.horizon
        self._log.database.snapshot(data / "log.sqlite")
        taking.made("log.sqlite")
        fault("backup.after_log")
        self._chains(taking)
        taking.folder_for("store/blobs/x")
        with self._store.picture(data / "store", index=INDEX_FILE, slots=SLOT_FILE) as picture:
            taking.made(f"store/{INDEX_FILE}")
            taking.made(f"store/{SLOT_FILE}")
            fault("backup.after_picture")
            for name, fd in picture.packs.items():
                taking.copy_open(f"store/packs/{name}", fd)
            for path in picture.blobs:
                taking.link_or_copy(f"store/blobs/{path.name}", path)
        for name in SMALL_FILES:
            taking.copy(name, home / name)
        for path in _files(home / "identity"):
            if path.suffix != ".lock" and path.name != "invitations.json":
                taking.copy(str(path.relative_to(home)), path)
        made = m.Manifest(
            vault_id=self._config.vault_id,
            device=self._config.device,
            data=data.name,
            position=position,
            taken_ms=self._clock.wall_ms(),
            sealed=sealed,
            home=str(home),
            contents=len(picture.contents),
            files=tuple(taking.files),
        )
        return made, picture.forgotten

    def _chains(self, taking: _Taking) -> None:
        """Index files before blocks: what they name is then there."""
        home = self._home.path
        chains = sorted(p for p in (home / "walytis").iterdir() if p.is_dir() and not p.name.startswith("."))
        for chain in chains:
            for path in _files(chain):
                if path.relative_to(chain).parts[0] != BLOCKS:
                    taking.copy(str(path.relative_to(home)), path)
        for chain in chains:
            for path in _files(chain / BLOCKS):
                taking.link_or_copy(str(path.relative_to(home)), path)

    def _known(self) -> list[Path]:
        raw = read_file(self._fs, self._home.path / KNOWN, limit=1 << 20)
        try:
            return [Path(text) for text in msgspec.json.decode(raw, type=list[str])] if raw else []
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return []

    def _remember(self, folder: Path) -> None:
        with self._known_lock:
            known = self._known()
            if folder not in known:
                texts = [str(path) for path in [*known[-63:], folder]]
                replace_file(self._fs, self._home.path / KNOWN, msgspec.json.encode(texts))


class _Taking:
    """One taking, into a data folder of its own."""

    def __init__(self, folder: Path, before: m.Manifest | None) -> None:
        self._folder = folder
        self._before = None if before is None else folder / before.data
        self._had = {} if before is None else {f.path: f for f in before.files}
        self.data = folder / f"{m.DATA}{secrets.token_hex(8)}"
        self.files: list[m.File] = []
        self.copied = 0
        with storage_errors(f"write to {folder}"):
            self.data.mkdir(mode=0o700)

    def folder_for(self, name: str) -> Path:
        """The place of a file, with its folder made."""
        place = self.data / name
        with storage_errors("write the backup"):
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return place

    def made(self, name: str) -> None:
        """A file was written there already: list it."""
        digest, size = hashlib.sha256(), 0
        with storage_errors("read back the backup"), (self.data / name).open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                size += len(piece)
        self._list(name, size, digest.hexdigest())

    def copy(self, name: str, source: Path) -> None:
        """Copy a file that may be replaced but is whole at any time; one that is not there is left out."""
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        except OSError as e:
            raise MisuseError(f"cannot read {source}: {e.strerror or e}") from e
        try:
            self.copy_open(name, fd)
        finally:
            os.close(fd)

    def copy_open(self, name: str, fd: int) -> None:
        """Copy an open file."""
        digest, size = hashlib.sha256(), 0
        with storage_errors("write the backup"):
            target = os.open(self.folder_for(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(target, "wb") as file:
                while piece := os.pread(fd, PIECE, size):
                    file.write(piece)
                    digest.update(piece)
                    size += len(piece)
        self._list(name, size, digest.hexdigest())

    def link_or_copy(self, name: str, source: Path) -> None:
        """A file that never changes: a link to the one of the backup before, if that has it."""
        had = self._had.get(name)
        if had is not None and self._before is not None:
            with contextlib.suppress(OSError):
                if source.stat().st_size == had.size == (self._before / name).stat().st_size:
                    os.link(self._before / name, self.folder_for(name))
                    self.files.append(had)
                    return
        self.copy(name, source)

    def _list(self, name: str, size: int, digest: str) -> None:
        self.files.append(m.File(name, size, digest))
        self.copied += size

    def sweep(self, counts: m.Manifest | None) -> None:
        """Remove every data folder but the one that counts."""
        for entry in self._folder.iterdir():
            if entry.name.startswith(m.DATA) and (counts is None or entry.name != counts.data):
                shutil.rmtree(entry, ignore_errors=True)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) if folder.is_dir() else ()
