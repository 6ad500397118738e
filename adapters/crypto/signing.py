"""Batch signatures: Ed25519 and ML-DSA-65 together, both must hold.

Refuses to sign anything that does not begin with byte 0xFF: text that a stranger chose can never become
something we signed. Signature layout: docs/wire-format.md, "Batch". Keys: domain.batch.key_id_of.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from walytis_vault.domain.batch import ED25519_BYTES, SIGNATURE_BYTES, key_id_of
from walytis_vault.domain.errors import MisuseError, UntrustedInputError
from walytis_vault.domain.ids import KeyId

PRIVATE_BYTES: Final = 64
"""Ed25519 seed (32 bytes) followed by the ML-DSA-65 seed (32 bytes)."""
ED25519_PUBLIC_BYTES: Final = 32
ML_DSA_65_PUBLIC_BYTES: Final = 1952
SIGNED_PREFIX: Final = 0xFF
CACHED_KEYS: Final = 1024


class HybridSigner:
    """This device's log-signing key. Implements `domain.ports.Signer`; threads may share it."""

    def __init__(self, ed25519: Ed25519PrivateKey, ml_dsa_65: MLDSA65PrivateKey) -> None:
        """Use `generate` or `from_private_bytes`."""
        self._ed25519 = ed25519
        self._ml_dsa_65 = ml_dsa_65
        self._ed25519_public = ed25519.public_key().public_bytes_raw()
        self._ml_dsa_65_public = ml_dsa_65.public_key().public_bytes_raw()
        self._key_id = key_id_of(self._ed25519_public, self._ml_dsa_65_public)

    @classmethod
    def generate(cls) -> HybridSigner:
        """Make a fresh key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate(), MLDSA65PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, data: bytes) -> HybridSigner:
        """Restore a key from `private_bytes`.

        Args:
            data: 64 bytes: Ed25519 seed, ML-DSA-65 seed.
        Raises:
            UntrustedInputError: another length.
        """
        if len(data) != PRIVATE_BYTES:
            raise UntrustedInputError(f"a signing key is {PRIVATE_BYTES} bytes, not {len(data)}")
        return cls(Ed25519PrivateKey.from_private_bytes(data[:32]), MLDSA65PrivateKey.from_seed_bytes(data[32:]))

    def private_bytes(self) -> bytes:
        """The secret, 64 bytes. Store it sealed only."""
        return self._ed25519.private_bytes_raw() + self._ml_dsa_65.private_bytes_raw()

    @property
    def key_id(self) -> KeyId:
        """Id of the public keys."""
        return self._key_id

    @property
    def ed25519_public(self) -> bytes:
        """32 bytes."""
        return self._ed25519_public

    @property
    def ml_dsa_65_public(self) -> bytes:
        """1952 bytes."""
        return self._ml_dsa_65_public

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) followed by the ML-DSA-65 signature (3309 bytes).

        Raises:
            MisuseError: the message does not begin with byte 0xFF.
        """
        if not message or message[0] != SIGNED_PREFIX:
            raise MisuseError("only messages that begin with byte 0xFF are signed")
        return self._ed25519.sign(message) + self._ml_dsa_65.sign(message)


class HybridVerifier:
    """Checks batch signatures. Implements `domain.ports.Verifier`; stateless but for a cache of parsed keys."""

    def verify(self, *, ed25519: bytes, ml_dsa_65: bytes, signature: bytes, message: bytes) -> bool:
        """True only if both signatures are valid. Never raises on hostile input.

        Args:
            ed25519: public key, 32 bytes.
            ml_dsa_65: public key, 1952 bytes.
            signature: 64 + 3309 bytes.
            message: what was signed; must begin with byte 0xFF.
        """
        if len(ed25519) != ED25519_PUBLIC_BYTES or len(ml_dsa_65) != ML_DSA_65_PUBLIC_BYTES:
            return False
        if len(signature) != SIGNATURE_BYTES or not message or message[0] != SIGNED_PREFIX:
            return False
        try:
            classic, quantum = _parsed(bytes(ed25519), bytes(ml_dsa_65))
            classic.verify(signature[:ED25519_BYTES], message)
            quantum.verify(signature[ED25519_BYTES:], message)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            return False
        return True


@lru_cache(maxsize=CACHED_KEYS)
def _parsed(ed25519: bytes, ml_dsa_65: bytes) -> tuple[Ed25519PublicKey, MLDSA65PublicKey]:
    return Ed25519PublicKey.from_public_bytes(ed25519), MLDSA65PublicKey.from_public_bytes(ml_dsa_65)
