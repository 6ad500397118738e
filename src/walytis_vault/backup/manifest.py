"""What a backup's manifest says, and the list of contents that were forgotten after it was taken.

The manifest is replaced as a whole, last: a folder without it, or with files that it does not name, is no backup.
It and each line of the list carry a code under a subkey of the master key, so that only the vault can write them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from walytis_vault.adapters.storage.atomic_file import read_file, replace_file
from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.domain.errors import MisuseError, StorageError
from walytis_vault.domain.ids import ID_BYTES
from walytis_vault.domain.ports import FileSystem

BACKUP_FORMAT: Final = 1
LABEL: Final = b"walytis-vault/backup/v1"
"""Subkey of the master key for the codes."""
MANIFEST: Final = "manifest.json"
FORGOTTEN: Final = "forgotten"
DATA: Final = "data-"
"""Folders with the files of one taking; the manifest names the one that counts."""
MAX_MANIFEST: Final = 1 << 30
MAX_FORGOTTEN: Final = 1 << 30

Hex = Annotated[str, Meta(pattern=r"\A[0-9a-f]*\Z", max_length=64)]


class File(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file of a backup."""

    path: Annotated[str, Meta(min_length=1, max_length=1024)]
    """Below the data folder and, when restored, below the home."""
    size: Annotated[int, Meta(ge=0)]
    sha256: Hex


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a backup consists of."""

    format: int = BACKUP_FORMAT
    vault_id: Annotated[str, Meta(max_length=128)]
    device: Annotated[str, Meta(max_length=512)]
    data: Annotated[str, Meta(pattern=r"\Adata-[0-9a-f]{16}\Z")]
    position: int
    taken_ms: int
    sealed: Literal["passphrase", "key-file"]
    """What opens it."""
    home: Annotated[str, Meta(max_length=4096)]
    """Where the node had its home when this was taken."""
    contents: int
    files: tuple[File, ...]
    code: Hex = ""
    """HMAC-SHA256 over the rest."""


def write_manifest(folder: Path, manifest: Manifest, key: bytes, fs: FileSystem) -> None:
    """Replace the manifest: from now on this is the backup. Raises StorageError."""
    sealed = msgspec.structs.replace(manifest, code=_code(manifest, key))
    replace_file(fs, folder / MANIFEST, msgspec.json.encode(sealed))


def read_manifest(folder: Path, fs: FileSystem) -> Manifest | None:
    """The manifest, not yet checked against a key; None where there is none.

    Raises:
        StorageError: it is damaged, or of another version.
    """
    raw = read_file(fs, folder / MANIFEST, limit=MAX_MANIFEST)
    if raw is None:
        return None
    try:
        found = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise StorageError(f"{folder / MANIFEST} is damaged: this is no backup that can be used") from e
    if found.format != BACKUP_FORMAT:
        raise StorageError(f"the backup has format {found.format}: this version reads format {BACKUP_FORMAT}")
    return found


def check_manifest(manifest: Manifest, key: bytes) -> None:
    """Raises StorageError unless this vault's node wrote the manifest as it is."""
    if not hmac.compare_digest(_code(manifest, key), manifest.code):
        raise StorageError("the backup's manifest was changed after it was written: do not use this backup")


def _code(manifest: Manifest, key: bytes) -> str:
    plain = msgspec.json.encode(msgspec.structs.replace(manifest, code=""))
    return hmac.new(key, LABEL + b"\x00" + plain, hashlib.sha256).hexdigest()


class ForgottenList:
    """Lines beside a manifest: ids of contents that were forgotten after the backup was taken.

    A line that was cut off by a crash, or that nobody with the key wrote, is passed over. Any thread may call.
    """

    def __init__(self, folder: Path, key: bytes, fs: FileSystem, lock: threading.Lock) -> None:
        """Bind to the backup in a folder; `lock` is one for all that write beside the same backup."""
        self._path, self._key, self._fs, self._lock = folder / FORGOTTEN, key, fs, lock

    def read(self) -> set[bytes]:
        """The ids. Raises StorageError."""
        raw = read_file(self._fs, self._path, limit=MAX_FORGOTTEN) or b""
        found = set()
        for line in raw.split(b"\n"):
            text, _, code = line.partition(b" ")
            if len(text) == 2 * ID_BYTES and hmac.compare_digest(self._line_code(text), code):
                found.add(bytes.fromhex(text.decode()))
        return found

    def add(self, content_ids: Iterable[bytes]) -> None:
        """Append durably. Raises StorageError."""
        lines = [i.hex().encode() for i in content_ids]
        with self._lock, storage_errors("note what was forgotten in a backup"):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                # A new line first: the last one may have been cut off.
                os.write(fd, b"\n" + b"".join(t + b" " + self._line_code(t) + b"\n" for t in lines))
                os.fsync(fd)
            finally:
                os.close(fd)

    def keep(self, known: set[bytes]) -> None:
        """Drop those that the backup itself knows to be forgotten. Raises StorageError."""
        with self._lock:
            left = sorted(self.read() - known)
            data = b"".join(i.hex().encode() + b" " + self._line_code(i.hex().encode()) + b"\n" for i in left)
            replace_file(self._fs, self._path, data)

    def _line_code(self, text: bytes) -> bytes:
        return hmac.new(self._key, LABEL + b"/forgotten\x00" + text, hashlib.sha256).hexdigest().encode()


def plain_path(base: Path, text: str) -> Path:
    """A file below `base`. Raises StorageError for a name that leads out of it."""
    parts = text.split("/")
    if not all(parts) or any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
        raise StorageError(f"the backup names a file {text[:80]!r}, which no backup has")
    return base.joinpath(*parts)


def check_folder(folder: Path, home: Path) -> Path:
    """The folder of a backup, made if missing.

    Raises:
        MisuseError: relative, inside the home, or something else is in it. StorageError: it cannot be made.
    """
    if not folder.is_absolute():
        raise MisuseError("name the folder of a backup by its whole path")
    folder = Path(os.path.realpath(folder))
    home = Path(os.path.realpath(home))
    if folder == home or home in folder.parents or folder in home.parents:
        raise MisuseError("a backup and its home cannot lie in one another: choose another folder")
    with storage_errors(f"use {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {entry.name for entry in folder.iterdir()}
    ours = {MANIFEST, FORGOTTEN, MANIFEST + ".tmp", FORGOTTEN + ".tmp"}
    if MANIFEST not in names and any(n not in ours and not n.startswith(DATA) for n in names):
        raise MisuseError(f"{folder} holds something else: choose an empty folder, or one with a backup of this vault")
    return folder
