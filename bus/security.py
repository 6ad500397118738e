"""Who may talk to the node: client key pairs, the verbs that each may use, and the node's own key pair.

Every client program has a CURVE key pair. The node knows public keys only, one file for each client in
`bus/clients/`; a client's secret is in `bus/NAME.key` (0600). A key that has no file is refused before a
single message of it is read. Refuses links and files that others may read. Spec: docs/bus-protocol.md, "Keys".
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import zmq
from msgspec import Meta
from zmq.utils import z85

from walytis_vault.bus.messages import Verb
from walytis_vault.domain.errors import ConflictError, MisuseError, StorageError, UnknownIdError

ALL_VERBS: Final[tuple[Verb, ...]] = ("read", "publish", "forget", "admin")
LOCAL: Final = "local"
"""Name of the key that is made with the vault and that clients use unless told otherwise."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FILE_CAP = 4096
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN})
"""Errors that say nothing about the file."""

Z85Key = Annotated[str, Meta(min_length=40, max_length=40)]


class BusKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A CURVE25519 key pair, each key as 40 characters of Z85."""

    public: Z85Key
    secret: Z85Key

    def __repr__(self) -> str:
        """Without the secret."""
        return f"BusKeys(public={self.public!r})"


class ClientEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the node knows of one client."""

    name: str
    public_key: Z85Key
    verbs: tuple[Verb, ...]


class ClientKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client holds: its name and its key pair."""

    name: str
    public_key: Z85Key
    secret_key: Z85Key

    def __repr__(self) -> str:
        """Without the secret."""
        return f"ClientKey(name={self.name!r}, public_key={self.public_key!r})"


def bus_keys(secret: bytes | str) -> BusKeys:
    """The key pair of a secret CURVE25519 key.

    Args:
        secret: 32 raw bytes, or 40 characters of Z85 as bytes or text.
    Raises:
        MisuseError: it is no such key.
    """
    raw = secret.encode() if isinstance(secret, str) else bytes(secret)
    if len(raw) == 32:
        raw = z85.encode(raw)
    if len(raw) != 40:
        raise MisuseError("a bus key is 32 bytes, or 40 characters of Z85")
    try:
        return BusKeys(public=zmq.curve_public(raw).decode(), secret=raw.decode())
    except (zmq.ZMQError, ValueError) as e:
        raise MisuseError("a bus key is 32 bytes, or 40 characters of Z85") from e


def make_keys() -> BusKeys:
    """A fresh key pair."""
    public, secret = zmq.curve_keypair()
    return BusKeys(public=public.decode(), secret=secret.decode())


def add_client(folder: Path, name: str, verbs: Iterable[Verb] = ALL_VERBS) -> Path:
    """Make a key pair for a client and admit it; a running node takes notice at the next connection.

    Args:
        folder: the home's `bus` folder; made (0700) when missing.
        name: letters, digits, `-` and `_`, at most 64.
        verbs: what it may do.
    Returns:
        The file with the secret key, 0600. Give it to the program, and to nobody else.
    Raises:
        MisuseError: bad name or verb. ConflictError: the name is taken. StorageError: not writable.
    """
    _check_name(name)
    wanted = tuple(v for v in ALL_VERBS if v in set(verbs))
    unknown = [v for v in verbs if v not in ALL_VERBS]
    if unknown or not wanted:
        raise MisuseError(f"verbs are some of {', '.join(ALL_VERBS)}; not {', '.join(unknown) or 'none'}")
    entry_path = folder / "clients" / f"{name}.json"
    key_path = folder / f"{name}.key"
    if entry_path.exists():
        raise ConflictError(f"there is a client {name!r} already: revoke it first, or choose another name")
    keys = make_keys()
    key = ClientKey(name=name, public_key=keys.public, secret_key=keys.secret)
    entry = ClientEntry(name=name, public_key=keys.public, verbs=wanted)
    make_private_folder(folder)
    make_private_folder(folder / "clients")
    # The secret first: an entry whose secret nobody has would admit nobody, but block the name.
    write_private(key_path, msgspec.json.encode(key))
    write_private(entry_path, msgspec.json.encode(entry))
    return key_path


def list_clients(folder: Path, unread: set[str] | None = None) -> list[ClientEntry]:
    """All clients that the node admits, by name. Damaged or foreign files are left out: they admit nobody.

    Args:
        unread: takes the names of those that cannot be read now, for want of descriptors or memory.
    """
    try:
        paths = sorted((folder / "clients").glob("*.json"))
    except OSError as e:
        raise StorageError(f"cannot read the list of clients in {folder}: {e.strerror or e}") from e
    found = []
    for path in paths:
        with contextlib.suppress(MisuseError, msgspec.MsgspecError, FileNotFoundError):
            try:
                data = read_private(path)
            except StorageError as e:
                if unread is not None and isinstance(e.__cause__, OSError) and e.__cause__.errno in _PASSING:
                    unread.add(path.stem)
                continue
            entry = msgspec.json.decode(data, type=ClientEntry)
            if f"{entry.name}.json" == path.name and _NAME.fullmatch(entry.name):
                found.append(entry)
    return found


def revoke_client(folder: Path, name: str) -> None:
    """Admit a client no more. A running node cuts its connections within a second.

    Raises:
        UnknownIdError: no such client. StorageError: not writable.
    """
    _check_name(name)
    try:
        (folder / "clients" / f"{name}.json").unlink()
        (folder / f"{name}.key").unlink(missing_ok=True)
        _fsync_folder(folder / "clients")
    except FileNotFoundError as e:
        raise UnknownIdError(f"there is no client {name!r}: see `walytis-vault client list`") from e
    except OSError as e:
        raise StorageError(f"cannot revoke client {name!r}: {e.strerror or e}") from e


def load_key(path: Path) -> ClientKey:
    """Read a client's key file.

    Raises:
        MisuseError: missing, not a key file, or others may read it. StorageError: unreadable.
    """
    try:
        data = read_private(path)
    except FileNotFoundError as e:
        raise MisuseError(f"there is no client key {path}: make one with `walytis-vault client add`") from e
    try:
        return msgspec.json.decode(data, type=ClientKey)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise MisuseError(f"{path} is not a client key file") from e


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter (0700), or check that it is one. Raises StorageError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise StorageError(f"{path} must be a folder of this user, and no link")
        if stat.S_IMODE(info.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as e:
        raise StorageError(f"cannot use {path} for the bus: {e.strerror or e}") from e


def write_private(path: Path, data: bytes) -> None:
    """Write a 0600 file atomically and durably. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_folder(path.parent)
    except OSError as e:
        raise StorageError(f"cannot write {path}: {e.strerror or e}") from e


def read_private(path: Path) -> bytes:
    """Read a small file of this user that nobody else may read or write, and no link.

    Raises:
        FileNotFoundError: it is missing. MisuseError: it is not private. StorageError: unreadable.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise StorageError(f"cannot read {path}: {e.strerror or e}") from e
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
            raise MisuseError(f"{path} must be a file that only you may read: chmod 600 it")
        if info.st_size > _FILE_CAP:
            raise MisuseError(f"{path} is too large to be a file of the bus")
        return file.read(_FILE_CAP)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise MisuseError(f"a client's name is 1-64 letters, digits, '-' and '_', not {name[:80]!r}")


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
