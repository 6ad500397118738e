"""This node's identity: the device's DID and the group identity that it founded or joined.

Built on walytis_identities, with its guards in place first (`guards`). Opening is cheap: the identity library
re-scans its chains every few seconds, so it runs only while somebody is being invited. It refuses to hold any
key but the identity's own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from walytis_vault.adapters.identity import certificates, guards
from walytis_vault.adapters.identity.group import JOIN_TIMEOUT, GroupHost, join, parse_invitation
from walytis_vault.adapters.identity.store_key import StoreKey, parse_store_key
from walytis_vault.adapters.walytis import block_ids, index_files, upstream
from walytis_vault.adapters.walytis.files import make_private_folder, read_text, replace_file
from walytis_vault.domain.errors import MisuseError, StorageError, VaultError

_RECORD: Final = "identity.json"


class _Record(msgspec.Struct, frozen=True):
    """What is public about this node's identity."""

    device_did: str
    group_did: str


class _StoredKey(msgspec.Struct, frozen=True):
    family: str
    public_key: str
    creation_time: str


class _StoredKeys(msgspec.Struct, frozen=True):
    """A key store's file, as far as it is public."""

    keys: list[_StoredKey] = []


class IdentityKeeper:
    """The identity in one folder. The Walytis node must run in this process."""

    def __init__(self, folder: Path, key: bytes, record: _Record) -> None:
        """For `create` and `open` only."""
        self._folder = folder
        self._keys = parse_store_key(key)
        self._record = record
        self._device_store: Any = None
        self._joined: Any = None
        self._host = GroupHost(folder, self._start_group)

    @classmethod
    def create(cls, folder: Path, key: bytes) -> IdentityKeeper:
        """Make a device DID and found a group identity with it.

        Args:
            folder: where the key stores will lie; made if missing, must hold no identity.
            key: from `new_store_key`; needed again by `open`.
        Raises:
            MisuseError: the folder already holds an identity.
            StorageError, TransportError: it could not be made; the folder may be removed.
        """
        keys = parse_store_key(key)
        if (folder / _RECORD).exists():
            raise MisuseError(f"{folder} already holds an identity")
        make_private_folder(folder)
        with upstream.our_errors("create the identity"):
            guards.install()
            identities = upstream.identities()
            device_store = _store(folder / "device.json", keys.device)
            device = identities.DidManager.create(device_store)
            group = identities.GroupDidManager.create(_store(folder / "group.json", keys.group), device)
            record = _Record(device_did=device.did, group_did=group.did)
            group.terminate()
        replace_file(folder / _RECORD, msgspec.json.encode(record))
        return cls(folder, key, record)

    @classmethod
    def join(cls, folder: Path, key: bytes, code: str, *, timeout: float = JOIN_TIMEOUT) -> IdentityKeeper:
        """Make a device DID and join the group that an invitation names.

        Args:
            folder: where the key stores will lie; made if missing, must hold no identity.
            key: from `new_store_key`; needed again by `open`.
            code: what `invite` gave on the inviter's node, which must run.
            timeout: seconds; on loopback it takes about 11.
        Raises:
            MisuseError: not an invitation, or the folder already holds an identity.
            TransportError, NotYetAvailableError: it did not work; the folder may be removed.
        """
        keys, invitation = parse_store_key(key), parse_invitation(code)
        if (folder / _RECORD).exists():
            raise MisuseError(f"{folder} already holds an identity")
        make_private_folder(folder)
        with upstream.our_errors("join the identity"):
            guards.install()
            device = upstream.identities().DidManager.create(_store(folder / "device.json", keys.device))
            group = join(invitation, _store(folder / "group.json", keys.group), device, timeout=timeout)
            record = _Record(device_did=device.did, group_did=group.did)
        replace_file(folder / _RECORD, msgspec.json.encode(record))
        joined = cls(folder, key, record)
        # To end it takes as long as joining the chains of all other members' DIDs, which nothing here needs:
        # whoever ends the process next need not wait for that.
        joined._joined, joined._device_store = group, device.key_store
        return joined

    @classmethod
    def open(cls, folder: Path, key: bytes) -> IdentityKeeper:
        """Open the identity in a folder.

        Raises:
            MisuseError: there is none.
            StorageError: its files are damaged.
        """
        text = read_text(folder / _RECORD, limit=1 << 16)
        if text is None:
            raise MisuseError(f"no identity in {folder}: create or join one first")
        try:
            record = msgspec.json.decode(text, type=_Record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise StorageError(f"{folder / _RECORD} is damaged: restore it from a backup") from e
        return cls(folder, key, record)

    @property
    def device_did(self) -> str:
        """DID of this device."""
        return self._record.device_did

    @property
    def member_did(self) -> str:
        """DID under which this node is a member of the group: the device's."""
        return self._record.device_did

    @property
    def group_did(self) -> str:
        """DID of the group identity."""
        return self._record.group_did

    def certify(self, statement: bytes) -> bytes:
        """Sign a statement with all control keys of the device's DID.

        Returns:
            A certificate of about 3.5 kB for `check_certificate`.
        """
        with upstream.our_errors("sign with the device's control keys"):
            guards.install()
            store = self._open_device_store()
            history = control_keys_on_record(self.device_did)
            if not history:
                raise StorageError("this device's DID has no control keys on record: its chain is damaged")
            current = history[-1]
            key_ids = [part for part in current.key_id.split("|") if part]
            message = certificates.LABEL + statement
            return certificates.encode(current.key_id, [store.get_key(i).sign(message, None) for i in key_ids])

    def invite(self, *, expires_s: float, addresses: Sequence[str]) -> str:
        """Make a one-use invitation to the group; see `GroupHost.invite`. Takes about a second the first time."""
        with upstream.our_errors("invite"):
            return self._host.invite(expires_s=expires_s, addresses=addresses)

    def resume_invitations(self) -> bool:
        """After a restart: serve invitations that are still out. Costs nothing when there are none."""
        with upstream.our_errors("serve invitations"):
            return self._host.resume()

    def revoke_invitations(self) -> None:
        """End every invitation that is out."""
        with upstream.our_errors("revoke invitations"):
            self._host.revoke_all()

    def group_members(self) -> set[str]:
        """DIDs that the group's chain names. Unverified (U3): admission is decided by our own events."""
        with upstream.our_errors("list the group's members"):
            return self._host.members()

    def keys_given_to_invited(self) -> list[str]:
        """Ids of the keys that an invitation hands over: the group's control keys and nothing else (U5)."""
        with upstream.our_errors("list keys"):
            stored = read_text(self._folder / "group.json", limit=guards.MAX_STORE)
            entries = msgspec.json.decode(stored or "{}", type=_StoredKeys).keys
            return [f"{k.family}:{k.creation_time}:{k.public_key}" for k in entries]

    def _start_group(self) -> Any:
        guards.install()
        for did in (self.device_did, self.group_did):
            upstream.load_chain(did.removeprefix(certificates.DID_PREFIX))
        identities = upstream.identities()
        self.close_stores()
        device = identities.DidManager(_store(self._folder / "device.json", self._keys.device))
        self._device_store = device.key_store
        return identities.GroupDidManager(_store(self._folder / "group.json", self._keys.group), device)

    def _open_device_store(self) -> Any:
        if self._device_store is None:
            self._device_store = _store(self._folder / "device.json", self._keys.device)
        return self._device_store

    def close(self) -> None:
        """Stop serving invitations and release the key stores. Idempotent."""
        self._host.stop()
        self.close_stores()

    def close_stores(self) -> None:
        """Release the key stores; after `join` that takes some 10 s."""
        joined, self._joined = self._joined, None
        if joined is not None:
            with contextlib.suppress(Exception):
                joined.terminate()
        if self._device_store is not None:
            with contextlib.suppress(Exception):
                self._device_store.terminate()
            self._device_store = None


def check_certificate(did: str, statement: bytes, certificate: bytes) -> bool | None:
    """Whether the DID's control keys certified the statement.

    Returns:
        None when this node does not have the DID's chain.
    """
    history = control_keys_on_record(did)
    return None if history is None else certificates.check(history, statement, certificate)


def control_keys_on_record(did: str) -> list[certificates.ControlKeys] | None:
    """The control keys that the DID's chain records, oldest first; None when we do not have the chain."""
    chain_id = did.removeprefix(certificates.DID_PREFIX)
    if chain_id == did or not upstream.have_chain(chain_id):
        return None
    upstream.load_chain(chain_id)
    return certificates.control_key_history(_control_key_blocks(chain_id))


def _control_key_blocks(chain_id: str) -> Iterator[bytes]:
    chain = upstream.core().get_blockchain(chain_id)
    for name in index_files.names(Path(chain.index_dir)):
        for record in index_files.records(Path(chain.index_dir) / name):
            if certificates.CONTROL_KEY_TOPIC not in block_ids.short_of(record.long_id):
                continue
            with contextlib.suppress(VaultError, OSError):
                path = Path(chain.get_block_datafile_path_from_cid(block_ids.cid_of(record.long_id)))
                yield block_ids.content_of(path.read_bytes(), record.long_id)


def _store(path: Path, key: StoreKey) -> Any:
    key_class = importlib.import_module("walytis_identities.key_objects").Key
    store_class = importlib.import_module("walytis_identities.key_store").KeyStore
    return store_class(str(path), key_class.deserialise_private(msgspec.to_builtins(key)))
