"""Invitations: the code that travels by hand, and the inviter's list of them.

A code is a bearer secret for one use. The inviter's disk keeps no secret of it: a key pair for the peer door is
derived from the secret, and only its public half, the secret's hash and the expiry are written down.
Spec: docs/peer-protocol.md, "Invitations".
"""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import zmq
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta
from zmq.utils import z85

from walytis_vault.adapters.storage.atomic_file import read_file, replace_file
from walytis_vault.domain.errors import (
    ConflictError,
    ForgottenError,
    MisuseError,
    PermissionRefusedError,
    StorageError,
    UnknownIdError,
)
from walytis_vault.domain.events import DidText, Digest
from walytis_vault.domain.ids import KeyId
from walytis_vault.domain.ports import Clock, FileSystem
from walytis_vault.peers.protocol import Addresses, PeerId

CODE_VERSION: Final = 2
CODE_LIMIT: Final = 16 << 10
"""Characters of a code."""
MAX_OPEN: Final = 256
"""Invitations that may be open at once (a count)."""
MAX_EXPIRY_S: Final = 30 * 24 * 3600.0
KEPT_MS: Final = 30 * 24 * 3600 * 1000
"""How long used and expired invitations are remembered, so that the reason can be told."""
ID_DIGITS: Final = 16
_KEY_LABEL: Final = b"walytis-vault/invitation-door-key/v1"


REVOKED: Final = "this invitation code was revoked: ask for a new one"
InvitationState = Literal["open", "used", "expired", "revoked"]
_COMMON: Final = b"/ip4/127.0.0.1/tcp/12D3KooWdid:walytisidentities:Qm"
"""Deflate's preset dictionary: what stands in every code, so that a code fits a QR of 80 columns."""


class Code(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True):
    """What a code says, in wire order."""

    vault_id: Annotated[str, Meta(min_length=1, max_length=128)]
    root: Digest
    peer_id: PeerId
    addresses: Addresses
    """Where the inviter's node is, without /p2p/…"""
    door: Digest
    """CURVE key of the inviter's peer door."""
    secret: Digest
    expires_ms: Annotated[int, Meta(ge=0, le=2**53)]
    group: DidText
    member: DidText | None
    """Whose device this will be; None for a new member."""


def write_code(code: Code) -> str:
    """A code as text."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_COMMON)
    packed = deflate.compress(msgspec.msgpack.encode(code)) + deflate.flush()
    return base64.urlsafe_b64encode(bytes([CODE_VERSION]) + packed).rstrip(b"=").decode()


def read_code(text: str) -> Code:
    """Read a code.

    Raises:
        MisuseError: no code, cut short, or of another version.
    """
    text = "".join(text.split())
    wrong = "this is no invitation code, or a part of it is missing: copy the whole line that `invite` printed"
    if not text or len(text) > CODE_LIMIT or not text.isascii():
        raise MisuseError(wrong)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", True)
        if raw[:1] == b"\x8a" or CODE_VERSION < raw[0] < 16:
            raise MisuseError("this invitation code was made by another version of walytis-vault")
        inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_COMMON)
        unpacked = inflate.decompress(raw[1:], CODE_LIMIT)
        if raw[0] != CODE_VERSION or not inflate.eof or inflate.unused_data:
            raise MisuseError(wrong)
        return msgspec.msgpack.decode(unpacked, type=Code)
    except (ValueError, IndexError, zlib.error, msgspec.MsgspecError, RecursionError) as e:
        raise MisuseError(wrong) from e


def door_keys(secret: bytes) -> tuple[bytes, bytes]:
    """(public, secret) CURVE key pair of an invitation, 40 characters of Z85 each."""
    raw = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_KEY_LABEL).derive(secret)
    private = z85.encode(raw)
    return zmq.curve_public(private), private


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One invitation as the inviter keeps it."""

    digest: bytes
    """SHA-256 of the secret: what `MemberAdmitted` names."""
    door_key: bytes
    """Raw public CURVE key with which the invited knocks."""
    expires_ms: int
    state: Literal["open", "used", "revoked"] = "open"
    admitted: bytes = b""
    """Key id of the device that came in."""
    device: str = ""
    """DID of that device."""
    created_ms: int = 0
    own_device: bool = False
    """Whether it invites a device of the inviter's own member."""

    @property
    def invitation_id(self) -> str:
        """What people call it by: the first 16 hex digits of the digest."""
        return self.digest.hex()[:ID_DIGITS]


class Invitations:
    """The inviter's list, in one file. Any thread may call."""

    def __init__(self, path: Path, fs: FileSystem, clock: Clock) -> None:
        """Read the list. Raises StorageError."""
        self._path, self._fs, self._clock = path, fs, clock
        self._lock = threading.Lock()
        raw = read_file(fs, path, limit=1 << 20)
        try:
            entries = msgspec.msgpack.decode(raw, type=list[Entry]) if raw else []
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise StorageError(f"{path} is damaged: remove it (open invitations are lost)") from e
        self._entries = {e.digest: e for e in entries}

    def add(self, secret: bytes, expires_s: float, *, own_device: bool = False) -> int:
        """Write a new invitation down; return when it expires, ms since 1970. Raises MisuseError, StorageError."""
        if not 0.0 < expires_s <= MAX_EXPIRY_S:
            raise MisuseError("an invitation is good for more than nothing and at most 30 days")
        now = self._clock.wall_ms()
        entry = Entry(
            digest=hashlib.sha256(secret).digest(),
            door_key=z85.decode(door_keys(secret)[0]),
            expires_ms=now + int(expires_s * 1000),
            created_ms=now,
            own_device=own_device,
        )
        with self._lock:
            kept = {d: e for d, e in self._entries.items() if e.expires_ms + KEPT_MS > now}
            if sum(e.state == "open" and e.expires_ms > now for e in kept.values()) >= MAX_OPEN:
                raise ConflictError(f"{MAX_OPEN} invitations are open: let some expire first")
            self._store({**kept, entry.digest: entry})
        return entry.expires_ms

    def knows(self, door_key: bytes) -> bool:
        """Whether a key at the door belongs to an invitation, a used or expired one included: it is told why."""
        return any(e.door_key == door_key for e in list(self._entries.values()))

    def all(self) -> list[Entry]:
        """All that are remembered, newest first."""
        return sorted(self._entries.values(), key=lambda e: (e.created_ms, e.digest), reverse=True)

    def state(self, entry: Entry) -> InvitationState:
        """What has become of an invitation, by this node's clock."""
        expired = entry.state == "open" and entry.expires_ms <= self._clock.wall_ms()
        return "expired" if expired else entry.state

    def revoke(self, invitation_id: str) -> Entry:
        """Let nobody in with this code any more, durably. Repeating it does no harm.

        Raises:
            UnknownIdError: no invitation has this id. ConflictError: somebody has come in with it. StorageError.
        """
        with self._lock:
            entry = next((e for e in self._entries.values() if e.invitation_id == invitation_id.lower()), None)
            if entry is None:
                raise UnknownIdError(f"no invitation {invitation_id[:40]!r} is known here: `invite --list` shows them")
            if entry.state == "used":
                raise ConflictError(f"this invitation was used already, by {entry.device}: `remove` ends what it gave")
            revoked = msgspec.structs.replace(entry, state="revoked")
            self._store({**self._entries, entry.digest: revoked})
        return revoked

    def check(self, door_key: bytes, key_id: KeyId | None = None) -> Entry:
        """The invitation behind a key at the door, if it is good.

        Args:
            key_id: signing key of the device that asks; the one that came in with it may come again.
        Raises:
            PermissionRefusedError, ForgottenError, ConflictError: unknown or revoked, expired, used.
        """
        entry = next((e for e in list(self._entries.values()) if e.door_key == door_key), None)
        if entry is None or entry.state == "revoked":
            raise PermissionRefusedError(REVOKED)
        if entry.state == "used" and (key_id is None or entry.admitted != key_id):
            raise ConflictError("this invitation code was used already: ask for a new one")
        if entry.state == "open" and entry.expires_ms <= self._clock.wall_ms():
            raise ForgottenError("this invitation code has expired: ask for a new one")
        return entry

    def use(self, entry: Entry, key_id: KeyId, device: str) -> None:
        """The invitation let this device in, durably. Before the event is made: it lets in nobody else."""
        with self._lock:
            now = self._entries[entry.digest]
            if now.state == "revoked":
                raise PermissionRefusedError(REVOKED)
            if now.state != "open" and now.admitted != key_id:
                raise ConflictError("this invitation code was used already: ask for a new one")
            used = msgspec.structs.replace(now, state="used", admitted=bytes(key_id), device=device)
            self._store({**self._entries, entry.digest: used})

    def _store(self, entries: dict[bytes, Entry]) -> None:
        replace_file(self._fs, self._path, msgspec.msgpack.encode(list(entries.values())))
        self._entries = entries
