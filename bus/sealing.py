"""Seals the data of one stream for the bulk socket, which has no CURVE: AES-256-GCM under a key for that stream alone.

The key comes over the CURVE socket and is used for one stream in one direction; the nonce is the offset of the
data, which never repeats within a stream. Spec: docs/bus-protocol.md, "The bulk socket".
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walytis_vault.domain.errors import UntrustedInputError

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_ATTACH: Final = b"\x00" * 4 + b"\xff" * 8
"""Nonce of the proof: no offset is so large."""


class Seal:
    """One stream's key. Any thread.

    Args:
        key: 32 bytes.
        stream_id: 16 bytes; bound into every seal.
    """

    def __init__(self, key: bytes, stream_id: bytes) -> None:
        self._cipher = AESGCM(key)
        self._id = stream_id

    def seal(self, offset: int, data: bytes | memoryview) -> bytes:
        """Encrypt the data that begins at `offset`: 16 bytes more."""
        return self._cipher.encrypt(_nonce(offset), data, self._id)

    def open(self, offset: int, sealed: bytes | memoryview) -> bytes:
        """Decrypt. Raises UntrustedInputError when anything of it was changed."""
        try:
            return self._cipher.decrypt(_nonce(offset), sealed, self._id)
        except (InvalidTag, ValueError) as e:
            raise UntrustedInputError("data on the bulk socket was changed on its way") from e

    def open_into(self, offset: int, sealed: bytes | memoryview, room: memoryview) -> None:
        """Decrypt into `room`, which is 16 bytes shorter. Raises as `open`."""
        try:
            self._cipher.decrypt_into(_nonce(offset), sealed, self._id, room)
        except (InvalidTag, ValueError) as e:
            raise UntrustedInputError("data on the bulk socket was changed on its way") from e

    def proof(self) -> bytes:
        """What only the owner of the key can say: attaches a connection to the stream."""
        return self._cipher.encrypt(_ATTACH, b"", self._id)

    def proves(self, proof: bytes) -> bool:
        """Whether a proof is right. In constant time."""
        try:
            self._cipher.decrypt(_ATTACH, proof, self._id)
        except (InvalidTag, ValueError):
            return False
        return True


def new_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def _nonce(offset: int) -> bytes:
    return offset.to_bytes(12, "big")
