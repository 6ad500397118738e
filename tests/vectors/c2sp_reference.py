"""C2SP chunked encryption once more, straight from the specification, to hold the library's against.

Slow and plain on purpose; takes the salt from outside, so that vectors are reproducible.
Specification: https://c2sp.org/chunked-encryption
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CHUNK = 16 << 10
SALT = 24


def derive(key: bytes, salt: bytes, context: bytes) -> tuple[bytes, bytes, bytes]:
    """Message key, base nonce and commitment of the instantiation with AES-GCM and SHA-512."""
    size = len(key)
    name = f"AEAD_AES_{size * 8}_GCM".encode()
    info = b"c2sp.org/chunked-encryption@v1+" + name + b"\x00" + salt + context
    out = HKDFExpand(algorithm=SHA512(), length=size + 12 + 32, info=info).derive(key)
    return out[:size], out[size : size + 12], out[size + 12 :]


def seal_chunks(key: bytes, salt: bytes, context: bytes, chunks: list[bytes]) -> list[bytes]:
    """Header and encrypted chunks, in any (also a wrong) chunking."""
    message_key, base, commitment = derive(key, salt, context)
    aead = AESGCM(message_key)
    out = [salt + commitment]
    for number, chunk in enumerate(chunks):
        nonce = (int.from_bytes(base, "big") ^ number).to_bytes(12, "big")
        out.append(aead.encrypt(nonce, chunk, None))
    return out


def encrypt(key: bytes, salt: bytes, context: bytes, message: bytes) -> bytes:
    """The one correct ciphertext of a message under this salt."""
    chunks = [message[i : i + CHUNK] for i in range(0, len(message), CHUNK)]
    if len(message) % CHUNK == 0:
        chunks.append(b"")
    return b"".join(seal_chunks(key, salt, context, chunks))
