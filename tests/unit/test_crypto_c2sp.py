"""C2SP chunked encryption: published vectors hold the reference, the reference's vectors hold our own code path."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.cobblestone import Cobblestone128Decryptor
from cryptography.exceptions import InvalidTag

from vectors import c2sp_reference as reference
from vectors.make_cobblestone_vectors import FILE, SCHEMES, Vector, make, make_vectors
from walytis_vault.adapters.crypto.content_cipher import ContentDecryptor, ContentEncryptor
from walytis_vault.domain.errors import VaultError

PUBLISHED_FILE = Path(__file__).parents[1] / "vectors" / "c2sp" / "chunked-encryption.json"
PUBLISHED_SHA256 = "99e0330ddfe2df9d80572f672767d77614b3d4ad356658bb9bd7c2a2e6c9b9d6"
PUBLISHED: list[dict[str, Any]] = json.loads(PUBLISHED_FILE.read_text())["vectors"]
MOST = 16 << 20
VECTORS = {prefix: [pytest.param(v, id=v.name) for v in make_vectors(prefix)] for prefix in SCHEMES}
STEPS = [1 << 20, 4099]


def test_the_published_file_is_unchanged() -> None:
    """The vendored file has its recorded hash, and 34 vectors for each of three AEADs."""
    assert hashlib.sha256(PUBLISHED_FILE.read_bytes()).hexdigest() == PUBLISHED_SHA256
    assert len(PUBLISHED) == 3 * 34


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in PUBLISHED])
def test_the_reference_on_published_vectors(vector: dict[str, Any]) -> None:
    """The reference derives, encrypts, opens and refuses exactly as published, for three AEADs with SHA-256."""
    scheme = reference.WITH_SHA256[vector["aead"]]
    key, context = bytes.fromhex(vector["key"]), (vector["context"] or "").encode()
    ciphertext = base64.b64decode(vector["ciphertext"] or "", validate=True)
    if vector.get("compressed"):
        ciphertext = zlib.decompressobj().decompress(ciphertext, MOST)
    if vector["expect"] != "success":
        with pytest.raises((ValueError, InvalidTag)):
            reference.decrypt(key, context, ciphertext, scheme)
        return
    message = reference.decrypt(key, context, ciphertext, scheme)
    assert (len(message), hashlib.sha256(message).hexdigest()) == (vector["payload_length"], vector["payload_sha256"])
    salt = ciphertext[: reference.SALT]
    assert reference.encrypt(key, salt, context, message, scheme) == ciphertext
    message_key, base, _ = reference.derive(key, salt, context, scheme)
    assert (message_key.hex(), base.hex()) == (vector["aead_key"], vector["base_nonce"])


def test_our_vectors_cover_the_published_classes() -> None:
    """Every class of the published vectors has its twin with SHA-512, with the same verdict and limit."""
    for prefix in SCHEMES:
        theirs = {v["name"]: (v["expect"], v.get("payload_length", 0)) for v in PUBLISHED if prefix in v["name"]}
        ours = {v["name"]: (v["expect"], v["released"]) for v in json.loads(make())["vectors"] if prefix in v["name"]}
        assert ours == theirs


def test_the_committed_vectors_are_what_the_generator_makes() -> None:
    """Vectors and generator agree."""
    assert FILE.read_text() == make()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("vector", VECTORS["aes256gcm"])
def test_our_decryption(vector: Vector, step: int) -> None:
    """Our own code path opens each vector, or gives our error, and releases only whole chunks that are true."""
    cipher: list[ContentDecryptor] = []

    def begin() -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
        cipher.append(ContentDecryptor(vector.key, vector.context))
        return cipher[0].update, cipher[0].finish

    check(vector, step, begin, VaultError)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("vector", VECTORS["aes128gcm"])
def test_the_library_with_128_bits(vector: Vector, step: int) -> None:
    """The library below us agrees with the reference also in the size that we do not use."""

    def begin() -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
        cipher = Cobblestone128Decryptor(vector.key, vector.context)
        return cipher.update, cipher.finalize

    check(vector, step, begin, (InvalidTag, ValueError))


def check(
    vector: Vector,
    step: int,
    begin: Callable[[], tuple[Callable[[bytes], bytes], Callable[[], bytes]]],
    refusal: type[Exception] | tuple[type[Exception], ...],
) -> None:
    """Feed a vector to a decryptor in steps and judge what comes out."""
    released = bytearray()

    def decrypt() -> None:
        update, finish = begin()
        for at in range(0, len(vector.ciphertext), step):
            released.extend(update(vector.ciphertext[at : at + step]))
        released.extend(finish())

    if vector.message is not None:
        decrypt()
        assert bytes(released) == vector.message
    else:
        with pytest.raises(refusal):
            decrypt()
        assert len(released) <= vector.released
        assert len(released) % reference.CHUNK == 0


@pytest.mark.parametrize("vector", [p for p in VECTORS["aes256gcm"] if p.values[0].message is not None])  # type: ignore[union-attr]
def test_our_encryption(vector: Vector) -> None:
    """What we encrypt is what the reference opens, under a salt that differs each time."""
    assert vector.message is not None
    cipher = ContentEncryptor(vector.key, vector.context)
    found = cipher.update(vector.message) + cipher.finish()
    assert reference.decrypt(vector.key, vector.context, found) == vector.message
    assert found == reference.encrypt(vector.key, found[: reference.SALT], vector.context, vector.message)
    assert found[: reference.SALT] != vector.ciphertext[: reference.SALT]
