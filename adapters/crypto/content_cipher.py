"""Encryption of contents: C2SP chunked encryption (Cobblestone-256), bound to vault, author and content id.

Plaintext is padded with zeros to a Padmé length first, so that the size says little. Hands out nothing that
did not authenticate. Format: docs/wire-format-content.md, "Content"; C2SP: https://c2sp.org/chunked-encryption
"""

from __future__ import annotations

from typing import Final

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from walytis_vault.adapters.crypto.labels import CONTENT_CONTEXT, join_parts
from walytis_vault.domain.errors import DamagedContentError, MisuseError
from walytis_vault.domain.ids import ContentId

HEADER_BYTES: Final = 56
"""24-byte salt and 32-byte key commitment."""
CHUNK_BYTES: Final = 16 << 10
"""Plaintext of one chunk; the last chunk is shorter, perhaps empty."""
CHUNK_TAG_BYTES: Final = 16
CONTENT_KEY_BYTES: Final = 32
PADDING_FLOOR: Final = 256
"""Contents of up to this many bytes look alike."""


def content_context(vault_id: str, author: str, content_id: ContentId) -> bytes:
    """What a content's ciphertext is bound to: label, vault id, author DID, content id, each with its length."""
    return join_parts(CONTENT_CONTEXT, vault_id.encode(), author.encode(), content_id)


def padded_length(length: int) -> int:
    """Padmé length of `length` plaintext bytes: at most 12 % more, and at least 256 bytes.

    Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", 2019:
    as many low bits of the length are cleared as its exponent has bits.
    """
    if length <= PADDING_FLOOR:
        return PADDING_FLOOR
    exponent = length.bit_length() - 1
    kept = exponent.bit_length()
    mask = (1 << (exponent - kept)) - 1
    return (length + mask) & ~mask


def ciphertext_length(padded: int) -> int:
    """Ciphertext bytes of a padded plaintext: header, and a 16-byte tag for each chunk and the last one."""
    return HEADER_BYTES + padded + CHUNK_TAG_BYTES * (padded // CHUNK_BYTES + 1)


def key_fits(key: bytes, context: bytes, header: bytes) -> bool:
    """Whether a content key, in this context, is the one that a header commits to."""
    try:
        ContentDecryptor(key, context).update(header)
    except DamagedContentError:
        return False
    return True


class ContentEncryptor:
    """Streaming encryption of one content. Owned by one thread."""

    def __init__(self, key: bytes, context: bytes) -> None:
        """Begin under a fresh 32-byte key. Raises MisuseError for a key of another length."""
        try:
            self._cipher = Cobblestone256Encryptor(key, context)
        except ValueError as e:
            raise MisuseError(f"a content key is {CONTENT_KEY_BYTES} bytes") from e

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """Add plaintext; returns the ciphertext that is complete so far, beginning with the header."""
        return self._cipher.update(data)

    def finish(self) -> bytes:
        """Return the last, short chunk."""
        return self._cipher.finalize()


class ContentDecryptor:
    """Streaming decryption of one content, fed with verified ciphertext in order. Owned by one thread."""

    def __init__(self, key: bytes, context: bytes) -> None:
        """Begin. Raises MisuseError for a key of another length."""
        try:
            self._cipher = Cobblestone256Decryptor(key, context)
        except ValueError as e:
            raise MisuseError(f"a content key is {CONTENT_KEY_BYTES} bytes") from e

    def update(self, data: bytes | memoryview) -> bytes:
        """Add ciphertext; returns the plaintext of the chunks that authenticated.

        Raises:
            DamagedContentError: wrong key, context or bytes. Nothing of this call was returned.
        """
        try:
            return self._cipher.update(data)
        except InvalidTag as e:
            raise DamagedContentError(
                "the content does not decrypt: its key, author or bytes are not the right ones"
            ) from e

    def finish(self) -> bytes:
        """Return the last chunk. Raises DamagedContentError when the ciphertext was cut short."""
        try:
            return self._cipher.finalize()
        except InvalidTag as e:
            raise DamagedContentError("the content ends too early or does not decrypt") from e
