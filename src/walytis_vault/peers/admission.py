"""The inviter's side of joining: makes codes, and answers those who come with one, as long as it is good.

The invited gets the chain (which anyone who knows its id may read anyway), a fresh invitation of the identity
library, and one admission; nothing else. Spec: docs/peer-protocol.md, "Joining".
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from eventsourcing.dcb.api import DCBAppendCondition, DCBQuery, DCBQueryItem
from eventsourcing.persistence import IntegrityError
from zmq.utils import z85

from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.identity import IdentityKeeper
from walytis_vault.adapters.walytis.chain_pack import pack_chain
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.security import BusKeys
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.claims import is_first_key, proves_possession
from walytis_vault.domain.errors import (
    BusyError,
    ConflictError,
    MisuseError,
    PermissionRefusedError,
    StorageError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.ids import KeyId
from walytis_vault.domain.limits import SEGMENT_BYTES
from walytis_vault.domain.ports import Randomness
from walytis_vault.home import VaultConfig
from walytis_vault.peers import protocol as p
from walytis_vault.peers.addresses import AddressBook
from walytis_vault.peers.desk import Answered
from walytis_vault.peers.invitations import Code, Entry, Invitations, write_code

SECRET_BYTES: Final = 32
GROUP_INVITATION_S: Final = 120.0
"""How long the identity library's invitation is good; another is made for each attempt to join."""
PACK_S: Final = 600.0
"""How long a packed chain is kept for whoever began to fetch it."""
PACK_FRESH_S: Final = 60.0
"""How long it serves others who come; what is newer they are told after they were admitted."""
ATTEMPTS: Final = 16

_log = logging.getLogger(__name__)
_keys = msgspec.msgpack.Decoder(ev.DeviceKeys, strict=True)


class Admission:
    """Invites and admits. Any thread may call."""

    def __init__(
        self,
        config: VaultConfig,
        log: VaultLog,
        invitations: Invitations,
        identity: IdentityKeeper,
        book: AddressBook,
        *,
        folder: Path,
        peer_id: str,
        addresses: Callable[[], Sequence[str]],
        keys: BusKeys,
        randomness: Randomness,
    ) -> None:
        """Args: folder: where packs of the chain lie for a while."""
        self._config, self._log, self._invitations = config, log, invitations
        self._identity, self._book = identity, book
        self._folder, self._peer_id, self._addresses, self._keys = folder, peer_id, addresses, keys
        self._randomness = randomness
        self._lock = threading.Lock()
        self._packing, self._inviting = threading.Lock(), threading.Lock()
        """What takes long is done for one invited at a time: others are told to come back, and hold up no members."""
        self._packs: dict[bytes, _Pack] = {}
        self._joining: set[bytes] = set()
        """Door keys that were given an invitation of the identity library."""

    def invite(self, expires_s: float, *, own_device: bool = False) -> str:
        """Make a one-use code, for a new member or for another device of this one.

        Raises:
            MisuseError, ConflictError, StorageError. PermissionRefusedError: this device is out of the vault.
        """
        if not self._log.membership().stands(self._config.device):
            raise PermissionRefusedError("this node belongs to no member of the vault any more: it can invite nobody")
        secret = self._randomness.token(SECRET_BYTES)
        expires_ms = self._invitations.add(secret, expires_s, own_device=own_device)
        return write_code(
            Code(
                vault_id=self._config.vault_id,
                root=self._config.root,
                peer_id=self._peer_id,
                addresses=tuple(self._addresses()),
                door=z85.decode(self._keys.public.encode()),
                secret=secret,
                expires_ms=expires_ms,
                group=self._config.group,
                member=self._config.member if own_device else None,
            )
        )

    def revoke(self, invitation_id: str) -> Entry:
        """End an invitation. See `Invitations.revoke`."""
        entry = self._invitations.revoke(invitation_id)
        with self._lock:
            self._drop_packs(entry.door_key)
        if entry.door_key in self._joining:
            # Whoever had begun to join holds an invitation of the identity library too; others ask for a new one.
            self._identity.revoke_invitations()
        return entry

    def answer(self, door_key: bytes, request: p.Request) -> Answered:
        """Answer somebody whose key belongs to an invitation.

        Raises:
            PermissionRefusedError, ForgottenError, ConflictError: revoked, expired, used. VaultError: it failed.
        """
        if isinstance(request, p.Admit):
            return self._admit(door_key, request)
        # Who was admitted and lost the reply comes again only to be told so.
        self._invitations.check(door_key)
        if isinstance(request, p.JoinGroup):
            with _alone(self._inviting):
                self._joining.add(door_key)
                code = self._identity.invite(expires_s=GROUP_INVITATION_S, addresses=self._addresses())
            return p.Done(), [code.encode()]
        if isinstance(request, p.ChainSize):
            return p.Done(number=self._pack(door_key)), ()
        if isinstance(request, p.ChainPart):
            return p.Done(), [self._part(door_key, request.offset)]
        raise PermissionRefusedError("an invitation allows to join and nothing else")

    # -- the chain ----------------------------------------------------------------------------------------------

    def _pack(self, door_key: bytes) -> int:
        with _alone(self._packing):
            with self._lock:
                self._drop_packs(door_key)
                newest = max(self._packs.values(), key=lambda pack: pack.made_at, default=None)
            if newest is None or time.monotonic() - newest.made_at > PACK_FRESH_S:
                path = self._folder / "pack-new"
                pack_chain(self._config.vault_id, path)
                newest = _Pack(path)
            with self._lock:
                self._packs[door_key] = newest
            return newest.size

    def _part(self, door_key: bytes, offset: int) -> bytes:
        pack = self._packs.get(door_key)
        if pack is None:
            raise MisuseError("ask for the size of the chain first")
        return pack.read(offset)

    def _drop_packs(self, done: bytes | None = None) -> None:
        """Let go of the pack of one invited, and of those that were made long ago."""
        now = time.monotonic()
        self._packs = {k: pack for k, pack in self._packs.items() if k != done and now - pack.made_at <= PACK_S}

    def close(self) -> None:
        """Let go of what was packed; stop serving invitations."""
        self._packs = {}
        with contextlib.suppress(VaultError):
            self._identity.close()

    # -- admission ----------------------------------------------------------------------------------------------

    def _admit(self, door_key: bytes, request: p.Admit) -> Answered:
        try:
            keys = _keys.decode(request.keys)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise UntrustedInputError("the newcomer's keys are malformed") from e
        key_id = key_id_of_device(keys)
        with self._lock:
            entry = self._invitations.check(door_key, key_id)
            fits = keys.member == (self._config.member if entry.own_device else keys.device)
            if not fits or not keys.peer_id or (entry.own_device and keys.device == keys.member):
                raise UntrustedInputError("these are not the keys of whom the invitation was made for")
            if not is_first_key(keys) or not proves_possession(keys, self._config.vault_id, HybridVerifier()):
                raise UntrustedInputError("the newcomer's keys are not vouched for by themselves")
            self._invitations.use(entry, key_id, keys.device)
            position = self._append(keys, key_id, entry)
            self._drop_packs(door_key)
        self._book.learn(keys.peer_id, request.addresses)
        return p.Done(number=position), ()

    def _append(self, keys: ev.DeviceKeys, key_id: KeyId, entry: Entry) -> int:
        """Append the admission unless it stands already; return a position that includes it."""
        event = self._event(keys, entry)
        query = DCBQuery(items=[DCBQueryItem(types=sorted(ev.MEMBERSHIP_TOPICS))])
        for _ in range(ATTEMPTS):
            after = self._log.index.horizon
            membership = self._log.membership()
            if key_id in membership.keys:
                return after
            taken = {k.device for k in membership.keys.values()} | set(membership.members)
            buses = {k.bus for k in membership.keys.values()}
            if keys.device in taken or keys.bus in buses:
                raise ConflictError("this device, or its key, is known in the vault already: join with a new one")
            condition = DCBAppendCondition(fail_if_events_match=query, after=after)
            try:
                return self._log.recorder.append([ev.to_dcb(event)], condition)
            except IntegrityError:
                continue
        raise ConflictError("the vault's membership is changing too quickly: repeat the request")

    def _event(self, keys: ev.DeviceKeys, entry: Entry) -> ev.Event:
        """A new member is admitted; a device of our own member is announced, certified by this device's DID."""
        if not entry.own_device:
            return ev.MemberAdmitted(member=keys.member, keys=keys, invitation=entry.digest)
        return ev.KeyAnnounced(keys=keys, certificate=self._identity.certify(msgspec.msgpack.encode(keys)))


class _Pack:
    """A packed chain: a file without a name, whose room is free once nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        """Take over a file. Raises StorageError."""
        self.made_at = time.monotonic()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
            self.size = os.fstat(self._fd).st_size
            path.unlink()
        except OSError as e:
            raise StorageError(f"the packed chain cannot be read: {e.strerror or e}") from e

    def read(self, offset: int) -> bytes:
        """The bytes from an offset on, at most 1 MiB. Raises StorageError."""
        try:
            return os.pread(self._fd, SEGMENT_BYTES, offset)
        except OSError as e:
            raise StorageError(f"the packed chain cannot be read: {e.strerror or e}") from e


@contextlib.contextmanager
def _alone(lock: threading.Lock) -> Iterator[None]:
    """Raises BusyError when somebody else is here."""
    if not lock.acquire(blocking=False):
        raise BusyError("the inviter's node is busy with another newcomer: repeat the request")
    try:
        yield
    finally:
        lock.release()
