"""The master key at rest, and the subkeys that everything else on disk is sealed with.

`master.sealed` holds the master key under a passphrase (Argon2id) or under the 0600 key file `vault.key`.
Refuses weak or greedy Argon2 parameters, and key files that others may read. Changing the passphrase
rewrites only this small file. Format: docs/wire-format-content.md, "Master key".
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final, Literal

import msgspec

from walytis_vault.adapters.crypto.labels import MASTER_SALT, MASTER_WRAP
from walytis_vault.adapters.crypto.passphrase import SALT_BYTES, Argon2Parameters, key_from_passphrase
from walytis_vault.adapters.crypto.sealing import KEY_BYTES, Sealer, derive_subkey
from walytis_vault.adapters.storage.atomic_file import read_file, remove_file, replace_file, sweep_temp_files
from walytis_vault.adapters.storage.failures import storage_errors, sync_errors
from walytis_vault.domain.errors import (
    ConflictError,
    LockedError,
    MisuseError,
    StorageError,
    UntrustedInputError,
    WrongPassphraseError,
)
from walytis_vault.domain.ports import FileSystem

MASTER_FILE: Final = "master.sealed"
KEY_FILE: Final = "vault.key"
MAX_MASTER_FILE: Final = 4096
MASTER_VERSION: Final = 1


class MasterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `master.sealed` says, in MessagePack."""

    version: int = MASTER_VERSION
    kind: Literal["passphrase", "key-file"]
    argon2: Argon2Parameters | None = None
    sealed: bytes


_decoder = msgspec.msgpack.Decoder(MasterFile, strict=True)


class VaultKeys:
    """The opened (or locked) master key of one home. Threads may share it."""

    def __init__(self, folder: Path, fs: FileSystem, master: bytes) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._fs = fs
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        """One change of the passphrase at a time."""
        self._master: bytes | None = master
        self._sealers: dict[bytes, Sealer] = {}

    @classmethod
    def create(cls, folder: Path, fs: FileSystem, passphrase: str | None) -> VaultKeys:
        """Make a fresh master key in `folder` (created with mode 0700).

        Args:
            passphrase: what will open it; None makes a key file (mode 0600) instead.
        Raises:
            ConflictError: there is a master key already.
            StorageError, MisuseError: nothing was created.
        """
        with storage_errors("create the key folder"):
            fs.makedirs(str(folder))
            exists = fs.size(str(folder / MASTER_FILE)) is not None
        if exists:
            raise ConflictError(f"{folder} holds the keys of a vault already: choose another home")
        with sync_errors("create the key folder"):
            fs.fsync_folder(str(folder.parent))
        master = os.urandom(KEY_BYTES)
        _store_master(folder, fs, master, passphrase)
        return cls(folder, fs, master)

    @classmethod
    def open(cls, folder: Path, fs: FileSystem, passphrase: str | None) -> VaultKeys:
        """Open the master key.

        Raises:
            WrongPassphraseError: the passphrase or key file does not open it.
            LockedError: a passphrase is needed and None was given.
            StorageError: no master key here, or its file is damaged.
        """
        master = _load_master(folder, fs, passphrase)
        # What a crash left behind: half written files, and a key file that gave way to a passphrase.
        sweep_temp_files(fs, folder)
        if passphrase is not None:
            remove_file(fs, folder / KEY_FILE)
        return cls(folder, fs, master)

    @staticmethod
    def needs_passphrase(folder: Path, fs: FileSystem) -> bool:
        """Whether the vault in `folder` is opened by a passphrase. Raises StorageError when there is none."""
        return _read_master_file(folder, fs).kind == "passphrase"

    @property
    def with_passphrase(self) -> bool:
        """Whether a passphrase opens it, and not a key file. Raises StorageError."""
        return self.needs_passphrase(self._folder, self._fs)

    @property
    def locked(self) -> bool:
        """Whether the keys are out of reach."""
        with self._lock:
            return self._master is None

    def check_unlocked(self) -> None:
        """Raise LockedError when the keys are out of reach."""
        if self.locked:
            raise LockedError("the vault is locked: unlock it first")

    def lock(self) -> None:
        """Drop the keys from this object; everything that needs them raises LockedError until `unlock`."""
        with self._lock:
            self._master = None
            self._sealers.clear()

    def unlock(self, passphrase: str | None) -> None:
        """Take the keys again. Raises as `open`."""
        master = _load_master(self._folder, self._fs, passphrase)
        with self._lock:
            self._master = master

    def sealer(self, label: bytes) -> Sealer:
        """The sealer for one use, under its own subkey. Raises LockedError."""
        with self._lock:
            found = self._sealers.get(label)
            if found is None:
                found = self._sealers[label] = Sealer(self._subkey(label), label)
            return found

    def subkey(self, label: bytes) -> bytes:
        """32 bytes for one use, derived from the master key. Raises LockedError."""
        with self._lock:
            return self._subkey(label)

    def change_passphrase(self, old: str | None, new: str | None) -> None:
        """Seal the master key anew; no content is touched. `None` stands for the key file. Also while locked.

        Repeatable: when `new` opens the vault already, a change whose answer got lost was made before.

        Raises:
            WrongPassphraseError: `old` does not open the vault; nothing changed.
            MisuseError: `new` is empty or too long; nothing changed.
            StorageError: the old or the new one opens the vault, never both; repeat the change to finish it.
            SyncFailedError: which of them does may change with a power cut.
        """
        with self._changing:
            try:
                master = _load_master(self._folder, self._fs, old)
            except (WrongPassphraseError, LockedError):
                if not _opens(self._folder, self._fs, new):
                    raise
            else:
                _store_master(self._folder, self._fs, master, new)
            if new is not None:
                remove_file(self._fs, self._folder / KEY_FILE)

    def seal_copy(
        self, folder: Path, passphrase: str | None, *, with_key_file: bool
    ) -> Literal["passphrase", "key-file"]:
        """Write a sealed copy of the master key into an existing folder, for a backup.

        Args:
            passphrase: what will open the copy; None leaves it sealed as it is here.
            with_key_file: copy the key file too, where that is what opens it.
        Returns:
            What opens the copy.
        Raises:
            MisuseError: it would be opened by a key file that is not to be copied. LockedError, StorageError.
        """
        self.check_unlocked()
        if passphrase is not None:
            with self._lock:
                master = self._master
            assert master is not None
            _store_master(folder, self._fs, master, passphrase)
            return "passphrase"
        raw = read_file(self._fs, self._folder / MASTER_FILE, limit=MAX_MASTER_FILE)
        kind = _read_master_file(self._folder, self._fs).kind
        if kind == "key-file":
            key = _key_file(self._folder, self._fs, missing_ok=False)
            if not with_key_file:
                raise MisuseError(
                    "this vault is opened by its key file: give the backup a passphrase, or ask for the key file"
                    " to be copied with it"
                )
            if key is None:
                raise StorageError(f"{KEY_FILE} is missing from {self._folder}: put it back")
            replace_file(self._fs, folder / KEY_FILE, key)
        replace_file(self._fs, folder / MASTER_FILE, raw or b"")
        return kind

    def _subkey(self, label: bytes) -> bytes:
        if self._master is None:
            raise LockedError("the vault is locked: unlock it first")
        return derive_subkey(self._master, salt=MASTER_SALT, info=label)


def _store_master(folder: Path, fs: FileSystem, master: bytes, passphrase: str | None) -> None:
    argon2: Argon2Parameters | None = None
    fresh = False
    if passphrase is None:
        found = _key_file(folder, fs, missing_ok=True)
        fresh = found is None
        wrapping = found or os.urandom(KEY_BYTES)
    else:
        argon2 = Argon2Parameters(salt=os.urandom(SALT_BYTES))
        wrapping = key_from_passphrase(passphrase, argon2)
    kind: Literal["passphrase", "key-file"] = "key-file" if argon2 is None else "passphrase"
    sealed = Sealer(wrapping, MASTER_WRAP).seal(master, kind.encode())
    raw = msgspec.msgpack.encode(MasterFile(kind=kind, argon2=argon2, sealed=sealed))
    try:
        if fresh:
            replace_file(fs, folder / KEY_FILE, wrapping)
        replace_file(fs, folder / MASTER_FILE, raw)
    except StorageError:
        if fresh:
            _remove_useless_key_file(folder, fs, raw)
        raise


def _remove_useless_key_file(folder: Path, fs: FileSystem, raw: bytes) -> None:
    """After a failure: unless the master file that it opens got its name, a key file must not lie beside the vault."""
    with contextlib.suppress(StorageError):  # there is an error to raise; the next opening removes it too
        if read_file(fs, folder / MASTER_FILE, limit=MAX_MASTER_FILE) != raw:
            remove_file(fs, folder / KEY_FILE)


def _read_master_file(folder: Path, fs: FileSystem) -> MasterFile:
    raw = read_file(fs, folder / MASTER_FILE, limit=MAX_MASTER_FILE)
    if raw is None:
        raise StorageError(f"no vault keys in {folder}: create the vault first")
    try:
        found = _decoder.decode(raw)
        if found.argon2 is not None:
            found.argon2.check()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UntrustedInputError) as e:
        raise StorageError(f"{MASTER_FILE} is damaged ({e}): restore it from a backup") from e
    if found.version != MASTER_VERSION or (found.argon2 is None) != (found.kind == "key-file"):
        raise StorageError(f"{MASTER_FILE} has version {found.version}: it needs another walytis-vault")
    return found


def _load_master(folder: Path, fs: FileSystem, passphrase: str | None) -> bytes:
    found = _read_master_file(folder, fs)
    if found.argon2 is None:
        if passphrase is not None:
            raise WrongPassphraseError("this vault is opened by its key file, not by a passphrase")
        wrapping = _key_file(folder, fs, missing_ok=False)
        refusal = f"{KEY_FILE} does not open this vault: it belongs to another one, or a file is damaged"
    else:
        if passphrase is None:
            raise LockedError("this vault is sealed with a passphrase: give it to unlock")
        try:
            wrapping = key_from_passphrase(passphrase, found.argon2)
        except MisuseError as e:
            raise WrongPassphraseError(str(e)) from e
        refusal = "wrong passphrase"
    if wrapping is None:
        raise WrongPassphraseError(f"{KEY_FILE} is missing from {folder}: put it back to open the vault")
    try:
        master = Sealer(wrapping, MASTER_WRAP).open(found.sealed, found.kind.encode())
    except UntrustedInputError as e:
        raise WrongPassphraseError(refusal) from e
    if len(master) != KEY_BYTES:
        raise StorageError(f"{MASTER_FILE} is damaged: restore it from a backup")
    return master


def _opens(folder: Path, fs: FileSystem, passphrase: str | None) -> bool:
    try:
        _load_master(folder, fs, passphrase)
    except (WrongPassphraseError, LockedError):
        return False
    return True


def _key_file(folder: Path, fs: FileSystem, *, missing_ok: bool) -> bytes | None:
    path = folder / KEY_FILE
    raw = read_file(fs, path, limit=MAX_MASTER_FILE)
    if raw is None:
        return None
    with storage_errors(f"look at {KEY_FILE}"):
        mode = path.stat().st_mode
    if mode & 0o077:
        raise StorageError(f"others may read {path}: run chmod 600 on it, and consider the vault exposed")
    if len(raw) != KEY_BYTES:
        if missing_ok:
            return None
        raise WrongPassphraseError(f"{KEY_FILE} is damaged: restore it from a backup")
    return raw
