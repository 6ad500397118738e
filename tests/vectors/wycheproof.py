"""Runs Wycheproof vectors through what we use: C2SP chunked encryption, Ed25519, ML-DSA-65, HKDF-SHA512.

The files are not part of this repository (see README.md here for source, commit and SHA-256). Run by hand:
`PYTHONPATH=src:tests python tests/vectors/wycheproof.py FOLDER`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from pathlib import Path
from typing import Final, Protocol

from cryptography.cobblestone import Cobblestone128Decryptor
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from walytis_vault.adapters.crypto.content_cipher import ContentDecryptor
from walytis_vault.domain.errors import VaultError

FILES: Final = {
    "c2sp_chunked_encryption_aes_128_gcm_test.json": "2e0a512c47bfae6efd0b59644ab72f3dd7e80e4f74d6642c2c10427a02b095db",
    "c2sp_chunked_encryption_aes_256_gcm_test.json": "0f8e35568d59649fb55fb0e5602dc678dc8910d6822beef4945aee0b5994ef05",
    "ed25519_test.json": "752d2ea7d7c6cf4736381b6cbacb61f8182b126ab7cd9b058f00c50084975536",
    "mldsa_65_verify_test.json": "49ac366d76115eab56b7116f10d06e288e6f23fe6cfb90b26bfb2d731a8d1e02",
    "hkdf_sha512_test.json": "bb9a21f4e86041caf5d7792b030349f8ff289087f195b2fbc0fc0afc39deca6f",
}
MAX_CIPHERTEXT: Final = 16 << 20


class Decryptor(Protocol):
    """What both key sizes have in common."""

    def update(self, data: bytes) -> bytes:
        """Add ciphertext."""
        ...

    def finish(self) -> bytes:
        """End."""
        ...


class _Decryptor128:
    """We use AES-256 only; the 128-bit file checks the library below us."""

    def __init__(self, key: bytes, context: bytes) -> None:
        self._cipher = Cobblestone128Decryptor(key, context)

    def update(self, data: bytes) -> bytes:
        return self._cipher.update(data)

    def finish(self) -> bytes:
        return self._cipher.finalize()


def check_file(path: Path) -> int:
    """Check every vector of one file; returns how many. Raises AssertionError."""
    raw = path.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == FILES[path.name], f"{path.name} is not the pinned version"
    count = 0
    for group in json.loads(raw)["testGroups"]:
        for test in group["tests"]:
            if "okm" in test:
                _check_hkdf(test)
            elif "sig" in test:
                _check_signature(group, test, quantum=path.name.startswith("mldsa"))
            else:
                _check_chunked(group, test)
            count += 1
    return count


def _check_hkdf(test: dict[str, object]) -> None:
    salt, info, ikm = (bytes.fromhex(str(test[name])) for name in ("salt", "info", "ikm"))
    try:
        found = HKDF(algorithm=SHA512(), length=int(str(test["size"])), salt=salt, info=info).derive(ikm).hex()
    except ValueError:
        found = ""
    assert found == (test["okm"] if test["result"] == "valid" else ""), test["tcId"]


def _check_signature(group: dict[str, object], test: dict[str, object], *, quantum: bool) -> None:
    message, signature = bytes.fromhex(str(test["msg"])), bytes.fromhex(str(test["sig"]))
    public = group["publicKey"]
    raw = bytes.fromhex(str(public["pk"] if isinstance(public, dict) else public))
    try:
        if quantum:
            context = bytes.fromhex(str(test.get("ctx") or ""))
            MLDSA65PublicKey.from_public_bytes(raw).verify(signature, message, context or None)
        else:
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)
        valid = True
    except (InvalidSignature, ValueError):
        valid = False
    assert valid == (test["result"] == "valid"), test["tcId"]


def _check_chunked(group: dict[str, object], test: dict[str, object]) -> None:
    kind = ContentDecryptor if group["aead"] == "AEAD_AES_256_GCM" else _Decryptor128
    data = zlib.decompressobj().decompress(bytes.fromhex(str(test["ct"])), MAX_CIPHERTEXT)
    for step in (len(data) or 1, 1 << 20, 4099):
        _check(kind, test, data, step)


def _check(kind: type, test: dict[str, object], data: bytes, step: int) -> None:
    digest, length, failed = hashlib.sha512(), 0, False
    try:
        cipher: Decryptor = kind(bytes.fromhex(str(test["key"])), bytes.fromhex(str(test["ctx"])))
        for start in range(0, len(data), step):
            piece = cipher.update(data[start : start + step])
            digest.update(piece)
            length += len(piece)
        piece = cipher.finish()
        digest.update(piece)
        length += len(piece)
    except (VaultError, InvalidTag, ValueError):
        failed = True
    name = f"{test['tcId']} {test['comment']}"
    if test["result"] == "valid":
        assert not failed, name
        assert (length, digest.hexdigest()) == (test["msgLength"], test["msgSha512"]), name
    else:
        assert failed, name
        assert length <= int(str(test.get("msgLength") or 0)), name


if __name__ == "__main__":
    for name in FILES:
        print(name, check_file(Path(sys.argv[1]) / name))
