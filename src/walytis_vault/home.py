"""The home folder of a vault on one machine: what lies where, the vault's public facts, and who owns it.

`vault.json` is written last when a vault is made: a home without it is no vault. It holds no secret. One node
owns a home at a time, by a lock that the kernel drops when the process ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from walytis_vault.adapters.storage.atomic_file import TEMP_SUFFIX, read_file, replace_file, sweep_temp_files
from walytis_vault.domain.errors import AlreadyRunningError, MisuseError, StorageError
from walytis_vault.domain.events import DidText, Digest
from walytis_vault.domain.ports import FileSystem

HOME_FORMAT: Final = 2
Network = Literal["loopback", "lan", "public"]
FetchMode = Literal["all", "small", "on-request"]
NETWORKS: Final = ("loopback", "lan", "public")
MAX_NAME: Final = 100
_CONFIG: Final = "vault.json"
_LOCK: Final = "node.lock"
_MAKING: Final = "making"
"""Stands in a home from the first step of making a vault to the last."""
_BEFORE_MAKING: Final = (_LOCK, _MAKING + TEMP_SUFFIX)
"""What a kill may leave before that."""


class VaultConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this machine knows of its vault, all of it public."""

    format: int
    vault_id: Annotated[str, Meta(min_length=1, max_length=128)]
    root: Digest
    """Id of the founding batch."""
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    """Local name, for people."""
    member: DidText
    device: DidText
    group: DidText
    network: Network
    created_ms: int
    fetch: FetchMode = "small"
    """Which contents of other members are fetched before anybody asks: small ones have up to 1 MiB."""
    fetch_limit: Annotated[int, Meta(ge=0)] | None = None
    """Padded bytes of the largest content that is fetched before anybody asks; None: as `fetch` says."""
    fetch_space: Annotated[int, Meta(ge=0)] | None = None
    """Bytes of contents on disk from which on nothing is fetched before anybody asks; None: no bound."""
    views: Annotated[str, Meta(max_length=4000)] = "sqlite"
    """Where the views are: `sqlite` (in the home), or a PostgreSQL URL without a password."""


class Home:
    """Paths and state of one home. The folders are made by `prepare`."""

    def __init__(self, path: Path, fs: FileSystem) -> None:
        """Bind to a folder; nothing is read or made yet."""
        self.path = path.absolute()
        self._fs = fs
        self._lock_fd: int | None = None

    @property
    def keys(self) -> Path:
        """Master key and sealed secrets."""
        return self.path / "keys"

    @property
    def identity(self) -> Path:
        """The identity library's key stores."""
        return self.path / "identity"

    @property
    def store(self) -> Path:
        """Ciphertext and content keys."""
        return self.path / "store"

    @property
    def bus(self) -> Path:
        """Socket and client keys."""
        return self.path / "bus"

    @property
    def log_database(self) -> Path:
        """Index of the log."""
        return self.path / "log.sqlite"

    @property
    def view_database(self) -> Path:
        """The views' tables."""
        return self.path / "views.sqlite"

    @property
    def restored_note(self) -> Path:
        """Stands in a home that was restored from a backup, until its node has come back."""
        return self.path / "restored.json"

    def config(self) -> VaultConfig:
        """Read vault.json.

        Raises:
            MisuseError: there is no vault here.
            StorageError: the file is damaged or of a newer format.
        """
        return self.config_in(self.path / _CONFIG)

    def config_in(self, path: Path) -> VaultConfig:
        """As `config`, from a file that is not in its place yet."""
        raw = read_file(self._fs, path, limit=1 << 16)
        if raw is None:
            raise MisuseError(f"no vault in {self.path}: make one with `walytis-vault init`, or `join` one")
        try:
            config = msgspec.json.decode(raw, type=VaultConfig)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise StorageError(f"{path} is damaged: restore it from a backup") from e
        if config.format != HOME_FORMAT:
            raise StorageError(
                f"{self.path} has format {config.format}, and this version reads format {HOME_FORMAT}: use the version"
                " that made it (format 1 was made before the first release, and is read by none)"
            )
        return config

    def is_vault(self) -> bool:
        """Whether a vault was made here to the end."""
        return (self.path / _CONFIG).exists()

    def prepare_peers(self) -> Path:
        """The folder of what concerns other nodes: addresses, invitations. Raises StorageError."""
        try:
            self._fs.makedirs(str(self.path / "peers"))
        except OSError as e:
            raise StorageError(f"cannot use {self.path}: {e.strerror or e}") from e
        return self.path / "peers"

    def use_private_temp(self) -> None:
        """Let this process put its temporary files here, where nobody else looks and the next start clears them.

        The libraries below leave theirs behind; so does a crash of ours while it replaces a file.
        """
        for own in (self.path, self.path / "peers"):
            if own.exists():
                sweep_temp_files(self._fs, own)
        folder = self.path / "tmp"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            self._fs.makedirs(str(folder))
        except OSError as e:
            raise StorageError(f"cannot use {self.path}: {e.strerror or e}") from e
        tempfile.tempdir = str(folder)

    def begin_making(self, token: str = "") -> None:
        """Lock and prepare an empty home for a new vault; remove what a crashed attempt left.

        Args:
            token: names the attempt; what an attempt with the same (not empty) token left is kept.

        Raises:
            MisuseError: there is a vault, or something else, in the folder.
            AlreadyRunningError: another process makes a vault here right now.
            StorageError: the folder cannot be made or written.
        """
        try:
            if self.is_vault():
                raise MisuseError(f"{self.path} already holds a vault: choose another home")
            if self.path.exists() and not self.path.is_dir():
                raise StorageError(f"{self.path} is not a folder: choose another home")
            begun = (self.path / _MAKING).exists()
            if not begun and self.path.exists() and any(e.name not in _BEFORE_MAKING for e in self.path.iterdir()):
                raise MisuseError(f"{self.path} is not empty: choose a new folder for the vault")
            self._fs.makedirs(str(self.path))
            self.path.chmod(0o700)
            self.lock()
            making = self.path / _MAKING
            if begun and token and making.read_text() == token:
                return  # rewriting it would put the keys that lie here at risk
            if begun:
                self.sweep()
            replace_file(self._fs, making, token.encode())
        except OSError as e:
            raise StorageError(f"cannot make a vault in {self.path}: {e.strerror or e}") from e

    def end_making(self, config: VaultConfig) -> None:
        """Write vault.json: from now on this is a vault."""
        self.change_config(config)
        (self.path / _MAKING).unlink(missing_ok=True)

    def remember_views(self, config: VaultConfig, place: str) -> None:
        """Write down where the views are from now on. Raises StorageError."""
        self.change_config(msgspec.structs.replace(config, views=place))

    def remove_views(self) -> None:
        """Remove the views' own database: they are kept elsewhere now. Raises StorageError."""
        try:
            for tail in ("", "-wal", "-shm"):
                self.view_database.with_name(self.view_database.name + tail).unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"cannot remove {self.view_database}: {e.strerror or e}") from e

    def change_config(self, config: VaultConfig) -> None:
        """Write vault.json. The caller owns this home. Raises StorageError."""
        written = msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n"
        try:
            replace_file(self._fs, self.path / _CONFIG, written)
        except OSError as e:
            raise StorageError(f"cannot write {self.path / _CONFIG}: {e.strerror or e}") from e

    def abandon_making(self) -> None:
        """Remove everything that a failed attempt made."""
        if not self.is_vault() and (self.path / _MAKING).exists():
            self.sweep()
            (self.path / _MAKING).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove everything in a home that is being made. Raises OSError."""
        for entry in self.path.iterdir():
            if entry.name in (_LOCK, _MAKING):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def lock(self) -> None:
        """Become the owner of this home, until the process ends.

        Raises:
            AlreadyRunningError: another node runs on it.
            StorageError: the folder cannot be used.
        """
        try:
            fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise StorageError(f"cannot use {self.path}: {e.strerror or e}") from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(fd)
            raise AlreadyRunningError(f"a node already runs on {self.path}: stop it, or use it with a client") from e
        self._lock_fd = fd

    def release(self) -> None:
        """Give the home back before the process ends. Idempotent."""
        if self._lock_fd is not None:
            fd, self._lock_fd = self._lock_fd, None
            os.close(fd)
