"""Guards around the identity library, put in place before it is used (security.md U1, U4, U5, U7).

Each replaces one function of upstream by one that refuses what that function should have refused. They fail
closed: if upstream has changed so that a guard does not find its place, the identity is not opened at all.
"""

from __future__ import annotations

import base64
import importlib
import json
import threading
from pathlib import Path
from typing import Any, Final

from walytis_vault.adapters.identity.certificates import FAMILIES
from walytis_vault.adapters.walytis import upstream
from walytis_vault.adapters.walytis.files import read_text, replace_file
from walytis_vault.domain.errors import MisuseError, StorageError, UntrustedInputError

CHALLENGE_LENGTH: Final = 200
"""Characters of the challenges that honest nodes send."""
STORED_FAMILIES: Final = frozenset({*FAMILIES, "PQ-ML-KEM-1024-ML-DSA-87"})
MAX_STORE: Final = 64 << 20
"""Bytes of a key store file."""
GOOD_SUFFIX: Final = ".good"
_installed = threading.Event()
_lock = threading.Lock()


def checked_challenge(challenge: object) -> str:
    """A challenge that may be signed: exactly 200 printable ASCII characters, no spaces.

    Everything else that we ever sign begins with byte 0xFF or is JSON or a key id of upstream's, so no such text
    means anything elsewhere.

    Raises:
        UntrustedInputError: anything else.
    """
    if (
        not isinstance(challenge, str)
        or len(challenge) != CHALLENGE_LENGTH
        or not all(33 <= ord(character) <= 126 for character in challenge)
    ):
        raise UntrustedInputError("a peer asked us to sign something that is no challenge")
    return challenge


def checked_file_name(name: str) -> str:
    """A file name that stays in its folder. Raises UntrustedInputError."""
    if not name or len(name) > 255 or name in {".", ".."} or any(part in name for part in ("/", "\\", "\0", "..")):
        raise UntrustedInputError("a peer sent a file with a name that is no plain name")
    return name


def install() -> None:
    """Put all guards in place. Idempotent; the node must run.

    Raises:
        MisuseError: upstream is not as the guards know it.
    """
    with _lock:
        if _installed.is_set():
            return
        upstream.identities()
        try:
            _guard_challenges()
            _guard_received_files()
            _guard_key_stores()
            _guard_written_files()
            _guard_invitations()
        except AttributeError as e:
            raise MisuseError(f"this version of walytis_identities cannot be used safely: {e}") from e
        _installed.set()


def _guard_challenges() -> None:
    """U1: the handshake signs text chosen by whoever connects."""
    module = importlib.import_module("walytis_identities.datatransmission")
    original = module.handle_challenge

    def handle_challenge(gdm: Any, their_challenge: Any) -> Any:
        return original(gdm, checked_challenge(their_challenge))

    module.__dict__["handle_challenge"] = handle_challenge


def _guard_invitations() -> None:
    """U1 and U5: an invitation signs a stranger's challenge, and hands the group's keys to each who comes."""
    manager: Any = importlib.import_module("walytis_identities.group_did_manager").InvitationManager
    original = manager.handler

    def handler(self: Any, conv_name: Any, peer_id: Any, salutation_start: bytes) -> None:
        with _lock:
            if getattr(self, "_used", False):
                raise UntrustedInputError("this invitation was used")
            salutation = json.loads(salutation_start)
            checked_challenge(salutation.get("challenge_data") if isinstance(salutation, dict) else None)
            # Spent from here on, even if the transfer fails or the node dies: the keys may have been sent.
            self._used = True
            self.gdm.save_invitations()
        original(self, conv_name=conv_name, peer_id=peer_id, salutation_start=salutation_start)

    manager.handler = handler


def _guard_received_files() -> None:
    """U4: the file receiver takes absolute names and `../`."""
    module = importlib.import_module("ipfs_tk_transmission.file_transmission")
    receiver: Any = module.FileTransmissionReceiver
    original = receiver.on_data_received

    def on_data_received(self: Any, conv: Any, data: Any) -> None:
        if getattr(self, "_refused", False):
            return
        if not self.transmission_started:
            try:
                parts = bytes(data).split(b"\xff")
                if len(parts) != 3:
                    raise UntrustedInputError("a peer began a file transfer with something else")
                checked_file_name(parts[1].decode())
            except (UntrustedInputError, UnicodeDecodeError):
                self._refused = True
                self.status = "aborted"
                self.conv.close()
                return
        original(self, conv, data)

    receiver.on_data_received = on_data_received


def _guard_key_stores() -> None:
    """U5: what lies in a key store goes to every invited device, so only the identity's own keys may lie there."""
    store: Any = importlib.import_module("walytis_identities.key_store").KeyStore
    objects: Any = importlib.import_module("walytis_identities.key_objects")
    original = store.add_key

    def add_key(self: Any, key: Any) -> Any:
        parts = key.keys if isinstance(key, objects.KeyGroup) else [key]
        if not all(isinstance(part, objects.Key) and part.family in STORED_FAMILIES for part in parts):
            raise MisuseError("only an identity's own keys may lie in its key store")
        return original(self, key)

    store.add_key = add_key


def _guard_written_files() -> None:
    """U7: key stores, invitations and block lists are rewritten in place."""
    store: Any = importlib.import_module("walytis_identities.key_store").KeyStore
    group: Any = importlib.import_module("walytis_identities.group_did_manager")._GroupDidManager
    chain: Any = upstream.api().Blockchain
    load_store, load_list = store._load_appdata, chain._load_blocks_list
    for needed in (store.save_appdata, group.save_invitations, chain._save_blocks_list):
        assert callable(needed)

    def save_appdata(self: Any) -> None:
        keys = [
            key.serialise_private_encrypted(self.key, allow_missing_private_key=True)
            for key in list(self.keys.values())
        ]
        content = {
            "appdata_encryption_public_key": self.key.get_id(),
            "keys": keys,
            "custom_metadata": self._custom_metadata,
        }
        save_whole(Path(self.key_store_path), content)

    def load_appdata(self: Any, key: Any) -> None:
        restore(Path(self.key_store_path))
        load_store(self, key)

    def save_invitations(self: Any) -> None:
        unspent = [i for i in self.member_invitations if not getattr(i, "_used", False)]
        save_whole(Path(self._get_invitations_file()), [i.serialise() for i in unspent])

    def save_blocks_list(self: Any, already_locked: bool = False) -> None:
        if not self.appdata_dir:
            return
        if not already_locked:
            self._blocklist_lock.acquire()
        try:
            lines = [upstream.encode_bytes(bytes(block_id)) + "\n" for block_id in self.get_block_ids()]
            replace_file(Path(self.appdata_dir) / "blocks_list", "".join(lines).encode())
        finally:
            if not already_locked:
                self._blocklist_lock.release()

    def load_blocks_list(self: Any) -> None:
        if self.appdata_dir:
            drop_torn_list(Path(self.appdata_dir) / "blocks_list")
        load_list(self)

    store.save_appdata = save_appdata
    store._load_appdata = load_appdata
    group.save_invitations = save_invitations
    chain._save_blocks_list = save_blocks_list
    chain._load_blocks_list = load_blocks_list


def save_whole(path: Path, content: Any) -> None:
    """Replace a JSON file durably and keep a good copy. Raises StorageError."""
    data = json.dumps(content).encode()
    replace_file(path, data)
    replace_file(path.with_name(path.name + GOOD_SUFFIX), data)


def restore(path: Path) -> None:
    """Before a key store is opened: put its good copy in the place of a damaged or lost one.

    Raises:
        StorageError: it is damaged and has no good copy.
    """
    copy = path.with_name(path.name + GOOD_SUFFIX)
    if _is_store(read_text(path, limit=MAX_STORE)) or (not path.exists() and not copy.exists()):
        return
    good = read_text(copy, limit=MAX_STORE)
    if good is None or not _is_store(good):
        raise StorageError(f"the key store {path} is damaged and has no good copy: restore it from a backup")
    replace_file(path, good.encode())


def _is_store(text: str | None) -> bool:
    try:
        content = json.loads(text or "")
        return isinstance(content["keys"], list) and isinstance(content["appdata_encryption_public_key"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def drop_torn_list(path: Path) -> None:
    """Before a list of handled blocks is read: remove it if it was torn; upstream makes it again from the chain."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    for line in lines:
        try:
            whole = line.endswith(b"\n") and b"\0\0\0\0" in base64.urlsafe_b64decode(line.strip() + b"==")
        except ValueError:
            whole = False
        if not whole:
            path.unlink()
            return
    if not lines:
        path.unlink()
