"""Sealing of small secrets with AES-256-GCM, and the subkeys under which that is done.

A sealed box is a random 12-byte nonce, ciphertext and 16-byte tag; label and context are authenticated, not
stored. Refuses boxes of another label, context or key. Specified in docs/wire-format-content.md, "Master key".
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from walytis_vault.adapters.crypto.labels import join_parts
from walytis_vault.domain.errors import UntrustedInputError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SEAL_OVERHEAD: Final = NONCE_BYTES + TAG_BYTES


class Sealer:
    """Seals and opens under one key and one label. Threads may share it."""

    def __init__(self, key: bytes, label: bytes) -> None:
        """Bind to a 32-byte key and a label."""
        if len(key) != KEY_BYTES:
            raise UntrustedInputError(f"a sealing key is {KEY_BYTES} bytes, not {len(key)}")
        self._aead = AESGCM(key)
        self._label = label

    def seal(self, plaintext: bytes, context: bytes = b"") -> bytes:
        """Return nonce, ciphertext and tag (28 bytes more than the plaintext)."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plaintext, join_parts(self._label, context))

    def open(self, sealed: bytes, context: bytes = b"") -> bytes:
        """Return the plaintext.

        Raises:
            UntrustedInputError: too short, changed, or sealed under another key, label or context.
        """
        if len(sealed) < SEAL_OVERHEAD:
            raise UntrustedInputError("a sealed secret is cut short")
        try:
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], join_parts(self._label, context))
        except InvalidTag as e:
            raise UntrustedInputError("a sealed secret was changed, or belongs to another key or place") from e


def derive_subkey(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA512 (extract, then expand) to 32 bytes. `salt` names the kind of key, `info` the use."""
    return HKDF(algorithm=SHA512(), length=KEY_BYTES, salt=salt, info=info).derive(key)
