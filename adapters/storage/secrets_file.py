"""The node's own secrets (signing key, CURVE secret, identity store key …) in one sealed file.

Replaced as a whole, never patched; sealed under a subkey of the master key. Refuses to open under another
master key or with a changed byte. Format: docs/wire-format-content.md, "Master key".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from walytis_vault.adapters.crypto.labels import SECRETS
from walytis_vault.adapters.storage.atomic_file import read_file, replace_file
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.domain.errors import MisuseError, StorageError, UntrustedInputError
from walytis_vault.domain.ports import FileSystem

SECRETS_FILE: Final = "secrets.sealed"
MAX_SECRETS: Final = 1 << 20
"""Bytes of all secrets together."""

_decoder = msgspec.msgpack.Decoder(dict[str, bytes], strict=True)


class SecretsFile:
    """A sealed map from a name to secret bytes. One owner at a time."""

    def __init__(self, folder: Path, keys: VaultKeys, fs: FileSystem) -> None:
        """Bind to `folder`/secrets.sealed; nothing is read yet."""
        self._path = folder / SECRETS_FILE
        self._keys = keys
        self._fs = fs

    def seal_secrets(self, secrets: dict[str, bytes]) -> None:
        """Replace all secrets durably.

        Raises:
            MisuseError: more than 1 MiB. LockedError. StorageError: the old ones are still there.
        """
        raw = msgspec.msgpack.encode(secrets)
        if len(raw) > MAX_SECRETS:
            raise MisuseError(f"secrets of {len(raw)} bytes: at most {MAX_SECRETS} fit")
        replace_file(self._fs, self._path, self._keys.sealer(SECRETS).seal(raw))

    def open_secrets(self) -> dict[str, bytes]:
        """Return all secrets; empty when none were ever sealed. Raises LockedError, StorageError."""
        sealed = read_file(self._fs, self._path, limit=2 * MAX_SECRETS)
        if sealed is None:
            return {}
        try:
            return _decoder.decode(self._keys.sealer(SECRETS).open(sealed))
        except (UntrustedInputError, msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise StorageError(f"{SECRETS_FILE} is damaged or of another vault: restore it from a backup") from e
