"""C2SP chunked encryption once more, straight from the specification, to hold the library's against.

Slow and plain on purpose; takes the salt from outside, so that vectors are reproducible. AEAD and hash are
parameters, so that it can be held against published vectors of other instantiations than the one that we use.
Specification: https://c2sp.org/chunked-encryption
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CHUNK = 16 << 10
SALT = 24
COMMITMENT = 32
TAG = 16


class Scheme(NamedTuple):
    """One instantiation: an AEAD by its IANA name, the length of its key, and the hash of HKDF-Expand."""

    aead: str
    key_bytes: int
    hash: type[HashAlgorithm]

    def cipher(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        """The AEAD under a message key."""
        return ChaCha20Poly1305(key) if self.aead == "AEAD_CHACHA20_POLY1305" else AESGCM(key)


COBBLESTONE_128 = Scheme("AEAD_AES_128_GCM", 16, SHA512)
COBBLESTONE_256 = Scheme("AEAD_AES_256_GCM", 32, SHA512)
WITH_SHA256 = {
    s.aead: s
    for s in (
        Scheme("AEAD_AES_128_GCM", 16, SHA256),
        Scheme("AEAD_AES_256_GCM", 32, SHA256),
        Scheme("AEAD_CHACHA20_POLY1305", 32, SHA256),
    )
}


def derive(key: bytes, salt: bytes, context: bytes, scheme: Scheme = COBBLESTONE_256) -> tuple[bytes, bytes, bytes]:
    """Message key, base nonce and commitment."""
    size = scheme.key_bytes
    info = b"c2sp.org/chunked-encryption@v1+" + scheme.aead.encode() + b"\x00" + salt + context
    out = HKDFExpand(algorithm=scheme.hash(), length=size + 12 + COMMITMENT, info=info).derive(key)
    return out[:size], out[size : size + 12], out[size + 12 :]


def seal_chunks(
    key: bytes, salt: bytes, context: bytes, chunks: list[bytes], scheme: Scheme = COBBLESTONE_256
) -> list[bytes]:
    """Header and encrypted chunks, in any (also a wrong) chunking."""
    message_key, base, commitment = derive(key, salt, context, scheme)
    aead = scheme.cipher(message_key)
    return [salt + commitment, *(aead.encrypt(_nonce(base, n), chunk, None) for n, chunk in enumerate(chunks))]


def chunks_of(message: bytes) -> list[bytes]:
    """The one right way to cut a message: the last chunk is shorter, perhaps empty."""
    return [message[i : i + CHUNK] for i in range(0, len(message) + 1, CHUNK)]


def encrypt(key: bytes, salt: bytes, context: bytes, message: bytes, scheme: Scheme = COBBLESTONE_256) -> bytes:
    """The one correct ciphertext of a message under this salt."""
    return b"".join(seal_chunks(key, salt, context, chunks_of(message), scheme))


def decrypt(key: bytes, context: bytes, ciphertext: bytes, scheme: Scheme = COBBLESTONE_256) -> bytes:
    """The message of a whole ciphertext.

    Raises:
        ValueError: cut short, another commitment, or a key of the wrong length. InvalidTag: a changed chunk.
    """
    if len(key) != scheme.key_bytes:
        raise ValueError(f"a key of {scheme.aead} has {scheme.key_bytes} bytes")
    if len(ciphertext) < SALT + COMMITMENT + TAG:
        raise ValueError("too short for a header and a last chunk")
    salt, body = ciphertext[:SALT], ciphertext[SALT + COMMITMENT :]
    message_key, base, commitment = derive(key, salt, context, scheme)
    if not hmac.compare_digest(ciphertext[SALT : SALT + COMMITMENT], commitment):
        raise ValueError("another key or context")
    aead = scheme.cipher(message_key)
    pieces = [body[i : i + CHUNK + TAG] for i in range(0, len(body), CHUNK + TAG)]
    opened = [aead.decrypt(_nonce(base, number), piece, None) for number, piece in enumerate(pieces)]
    if len(opened[-1]) == CHUNK:
        raise ValueError("the last chunk is missing")
    return b"".join(opened)


def _nonce(base: bytes, number: int) -> bytes:
    return (int.from_bytes(base, "big") ^ number).to_bytes(12, "big")
