"""Every key that a thief of a home finds: opened with the home's own keys, and every 32 bytes that might be one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.slots import HEADER_BYTES, SLOT_BYTES, SlotFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.home import Home

KEY_BYTES = 32
FOLDERS = ("keys", "identity", "bus", "peers", "ipfs/keystore")
"""Where keys lie; every window of every file of these is tried."""


def keys_on_disk(home: Path, scratch: Path) -> set[bytes]:
    """All candidates from a copy of a home whose node is stopped.

    Args:
        scratch: a folder for the copy; it must not exist.
    """
    shutil.copytree(home, scratch, symlinks=True)
    fs, folder = OsFileSystem(), Home(scratch, OsFileSystem())
    keys = VaultKeys.open(folder.keys, fs, None)
    found = set(_windows(keys.subkey(b"any")))
    for secret in SecretsFile(folder.keys, keys, fs).open_secrets().values():
        found.update(_windows(secret))
    slots = SlotFile(folder.store / "keys.slots", fs, keys, folder.config().vault_id)
    for number in range(slots.capacity):
        held = slots.read(number)
        if held is not None:
            found.add(bytes(held[1]))
    slots.close()
    for name in FOLDERS:
        for path in (scratch / name).rglob("*"):
            if path.is_file():
                found.update(_windows(path.read_bytes()))
    found.update(_windows((scratch / "ipfs" / "config").read_bytes()))
    return found


class Slot(NamedTuple):
    """A slot that holds a key."""

    offset: int
    """Where it begins in the slot file."""
    content_id: bytes
    key: bytes
    sealed: bytes


def sealed_slots(home: Path, scratch: Path, passphrase: str | None = None) -> list[Slot]:
    """Every slot in use. The node may run.

    Args:
        scratch: a folder for copies, outside of what is scanned; it must not exist.
    """
    shutil.copytree(home / "keys", scratch / "keys")
    copied = Home(scratch, OsFileSystem())
    copied.store.mkdir()
    for path in (home / "vault.json", home / "store" / "keys.slots"):
        shutil.copy(path, scratch / path.relative_to(home))
    keys = VaultKeys.open(copied.keys, OsFileSystem(), passphrase)
    slots = SlotFile(copied.store / "keys.slots", OsFileSystem(), keys, copied.config().vault_id)
    raw = slots.whole()
    found = []
    for number in range(slots.capacity):
        held = slots.read(number)
        if held is not None:
            start = HEADER_BYTES + number * SLOT_BYTES
            found.append(Slot(start, bytes(held[0]), bytes(held[1]), raw[start : start + SLOT_BYTES]))
    slots.close()
    return found


def _windows(data: bytes) -> Iterator[bytes]:
    return (data[start : start + KEY_BYTES] for start in range(len(data) - KEY_BYTES + 1))
