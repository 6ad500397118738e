"""How a content key travels from one device to another: HPKE to a key pair that was made for this one request.

The request is signed with the asker's log key. The sealed reply is bound to vault, content, both devices, nonce
and the request's hash, so it opens nowhere else; the private key never leaves this object and goes with it, so
recorded traffic stays closed whatever keys are stolen later. Spec: docs/peer-protocol.md, "Keys".
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from walytis_vault.adapters.crypto.labels import join_parts
from walytis_vault.domain.batch import SIGNATURE_BYTES
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.ids import ID_BYTES, ContentId, ContentKey
from walytis_vault.domain.ports import Signer, Verifier

ASK_LABEL: Final = b"\xffwalytis-vault/key-request/v1\x00"
"""Begins with 0xFF, as everything that we sign."""
GRANT_LABEL: Final = b"walytis-vault/key-grant/v1"
NONCE_BYTES: Final = 16
ML_KEM_PUBLIC_BYTES: Final = 1184
KEM_PUBLIC_BYTES: Final = ML_KEM_PUBLIC_BYTES + 32
"""ML-KEM-768 public key, X25519 public key."""
KEY_BYTES: Final = 32
SEALED_BYTES: Final = 1088 + 32 + KEY_BYTES + 16
"""Encapsulated key of MLKEM768_X25519, key, tag."""
_SUITE: Final = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class KeyAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed: who asks whom for which key, and for which fresh public key."""

    vault_id: str
    content_id: bytes
    asker: str
    """Device DID."""
    holder: str
    """Device DID."""
    nonce: bytes
    public: bytes


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it goes over the wire."""

    nonce: bytes
    public: bytes
    signature: bytes


def statement_of(ask: KeyAsk) -> bytes:
    """The signed bytes of a request."""
    return ASK_LABEL + join_parts(
        ask.vault_id.encode(), ask.content_id, ask.asker.encode(), ask.holder.encode(), ask.nonce, ask.public
    )


def _info(statement: bytes) -> bytes:
    return join_parts(GRANT_LABEL, statement, hashlib.sha256(statement).digest())


class OpenRequest:
    """An own request that waits for its reply; opens one sealed key, once."""

    def __init__(
        self, signer: Signer, *, vault_id: str, content_id: ContentId, asker: str, holder: str, nonce: bytes
    ) -> None:
        """Make the key pair and sign the request."""
        ml_kem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._private: hpke.MLKEM768X25519PrivateKey | None = hpke.MLKEM768X25519PrivateKey(ml_kem, x25519)
        public = ml_kem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        ask = KeyAsk(vault_id=vault_id, content_id=content_id, asker=asker, holder=holder, nonce=nonce, public=public)
        self._statement = statement_of(ask)
        self.wire = KeyRequest(nonce=nonce, public=public, signature=signer.sign(self._statement))

    def open(self, sealed: bytes) -> ContentKey:
        """Open the reply; afterwards this request is closed, also when it failed.

        Raises:
            UntrustedInputError: it is not the reply to this request.
        """
        private, self._private = self._private, None
        if private is None or len(sealed) != SEALED_BYTES:
            raise UntrustedInputError("a peer sent a content key that nobody waits for")
        try:
            key = _SUITE.decrypt(sealed, private, _info(self._statement))
        except (InvalidTag, ValueError) as e:
            raise UntrustedInputError("a peer sent a content key that was not sealed for this request") from e
        if len(key) != KEY_BYTES:
            raise UntrustedInputError("a peer sent a content key of a wrong length")
        return ContentKey(key)


def is_signed(ask: KeyAsk, signature: bytes, asker: DeviceKeys, verifier: Verifier) -> bool:
    """Whether a device signed this request."""
    return (
        len(signature) == SIGNATURE_BYTES
        and ask.asker == asker.device
        and verifier.verify(
            ed25519=asker.ed25519, ml_dsa_65=asker.ml_dsa_65, signature=signature, message=statement_of(ask)
        )
    )


def seal_key(key: ContentKey, ask: KeyAsk, signature: bytes, asker: DeviceKeys, verifier: Verifier) -> bytes:
    """Seal a content key for a request, after its signature was found good.

    Args:
        asker: the announced keys of the device that authenticated at the peer door.
    Raises:
        UntrustedInputError: malformed, or not signed by that device.
    """
    if len(ask.nonce) != NONCE_BYTES or len(ask.content_id) != ID_BYTES or len(ask.public) != KEM_PUBLIC_BYTES:
        raise UntrustedInputError("a key request has fields of wrong lengths")
    if not is_signed(ask, signature, asker, verifier):
        raise UntrustedInputError("a key request is not signed by the device that sent it")
    try:
        public = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(ask.public[:ML_KEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(ask.public[ML_KEM_PUBLIC_BYTES:]),
        )
        return _SUITE.encrypt(key, public, _info(statement_of(ask)))
    except (ValueError, TypeError) as e:
        raise UntrustedInputError("a key request carries no usable public key") from e
