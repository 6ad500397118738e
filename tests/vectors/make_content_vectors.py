"""Makes content_vectors.json: our formats at rest, one defect per vector, with the expected kind of error.

Written from docs/wire-format-content.md with hashlib and plain AES-GCM, not with the code under test. Run it
from the project's folder: `python tests/vectors/make_content_vectors.py` (a test compares its output).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from vectors.c2sp_reference import CHUNK, encrypt, seal_chunks  # noqa: E402

FILE = HERE / "content_vectors.json"
SEGMENT = 1 << 20
VAULT, AUTHOR = "vault-1", "did:walytis:alice"
CONTENT_ID, OTHER_ID = bytes(range(16)), bytes(range(1, 17))
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
SALT = bytes(range(100, 124))
NONCE = bytes(range(200, 212))
MASTER = bytes(range(64, 96))


def stream(seed: str, size: int) -> bytes:
    """Bytes that everyone can make again: SHAKE-256 of a seed."""
    return hashlib.shake_256(seed.encode()).digest(size)


def joined(*parts: bytes) -> bytes:
    return b"".join(len(p).to_bytes(4, "big") + p for p in parts)


def context(label: str = "walytis-vault/content/v1", vault: str = VAULT, author: str = AUTHOR) -> bytes:
    return joined(label.encode(), vault.encode(), author.encode(), CONTENT_ID)


def subkey(key: bytes, salt: str, info: str) -> bytes:
    return HKDF(algorithm=SHA512(), length=32, salt=salt.encode(), info=info.encode()).derive(key)


def box(key: bytes, label: str, where: bytes, plain: bytes) -> bytes:
    return NONCE + AESGCM(key).encrypt(NONCE, plain, joined(label.encode(), where))


def content_vectors() -> list[dict[str, Any]]:
    """Contents of one to three chunks, and everything that can be wrong with one."""
    message = stream("content", 2 * CHUNK + 256)
    chunks = [message[:CHUNK], message[CHUNK : 2 * CHUNK], message[2 * CHUNK :]]
    header, *sealed = seal_chunks(KEY, SALT, context(), chunks)
    whole = header + b"".join(sealed)

    def one(name: str, data: bytes, error: str | None, key: bytes = KEY, author: str = AUTHOR) -> dict[str, Any]:
        return {
            "kind": "content",
            "name": name,
            "key": key.hex(),
            "vault_id": VAULT,
            "author": author,
            "content_id": CONTENT_ID.hex(),
            "ciphertext_sha256": hashlib.sha256(data).hexdigest(),
            "ciphertext": data.hex() if len(data) < 1024 else None,
            "recipe": recipes[name] if len(data) >= 1024 else None,
            "error": error,
            "plaintext_sha256": None if error else hashlib.sha256(messages.get(name, message)).hexdigest(),
        }

    padded = b"hello".ljust(256, b"\x00")
    messages = {"short": padded, "zeros, exact chunk": bytes(CHUNK)}
    short = encrypt(KEY, SALT, context(), padded)
    recipes = {
        "three chunks": ["header", 0, 1, 2],
        "zeros, exact chunk": ["zeros", CHUNK],
        "chunks swapped": ["header", 1, 0, 2],
        "chunk doubled": ["header", 0, 0, 1, 2],
        "chunk dropped": ["header", 1, 2],
        "last chunk dropped": ["header", 0, 1],
        "trailing chunk": ["header", 0, 1, 2, 2],
    }
    flipped = bytearray(short)
    flipped[-1] ^= 1
    salted = bytearray(short)
    salted[0] ^= 1
    committed = bytearray(short)
    committed[24] ^= 1
    return [
        one("short", short, None),
        one("three chunks", whole, None),
        one("zeros, exact chunk", encrypt(KEY, SALT, context(), bytes(CHUNK)), None),
        one("chunks swapped", header + sealed[1] + sealed[0] + sealed[2], "damaged-content"),
        one("chunk doubled", header + sealed[0] + whole[len(header) :], "damaged-content"),
        one("chunk dropped", header + sealed[1] + sealed[2], "damaged-content"),
        one("last chunk dropped", header + sealed[0] + sealed[1], "damaged-content"),
        one("trailing chunk", whole + sealed[2], "damaged-content"),
        one("last bit flipped", bytes(flipped), "damaged-content"),
        one("salt changed", bytes(salted), "damaged-content"),
        one("commitment changed", bytes(committed), "damaged-content"),
        one("cut inside the header", short[:40], "damaged-content"),
        one("cut inside the tag", short[:-1], "damaged-content"),
        one("header alone", short[:56], "damaged-content"),
        one("wrong key", short, "damaged-content", key=OTHER_KEY),
        one("wrong author", short, "damaged-content", author="did:walytis:bob"),
        one("author and vault run together", short, "damaged-content", author="1did:walytis:alice"),
        one("sealed for another vault", encrypt(KEY, SALT, context(vault="vault-2"), padded), "damaged-content"),
        one("other label", encrypt(KEY, SALT, context(label="walytis-vault/content/v2"), padded), "damaged-content"),
    ]


def root_vectors() -> list[dict[str, Any]]:
    """Roots of ciphertexts made from a seed, and roots that were made wrongly, which no right segments may give."""

    def digest(label: str, data: bytes) -> bytes:
        return hashlib.sha256(f"walytis-vault/{label}/v1".encode() + b"\x00" + data).digest()

    def root(
        segments: list[bytes],
        *,
        leaf_label: str = "leaf",
        node_label: str = "node",
        root_label: str = "root",
        length: bytes | None = None,
        odd_doubled: bool = False,
        flipped: bool = False,
    ) -> str:
        level = [digest(leaf_label, s) for s in segments]
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            if odd_doubled:
                pairs = [p * 2 if len(p) == 1 else p for p in pairs]
            if flipped:
                pairs = [p[::-1] for p in pairs]
            level = [digest(node_label, p[0] + p[1]) if len(p) == 2 else p[0] for p in pairs]
        size = sum(map(len, segments)).to_bytes(8, "big") if length is None else length
        return digest(root_label, size + level[0]).hex()

    def one(length: int, name: str, found: str, error: str | None = None) -> dict[str, Any]:
        return {"kind": "root", "name": name, "seed": "root", "length": length, "root": found, "error": error}

    def cut(length: int) -> list[bytes]:
        data = stream("root", length)
        return [data[i : i + SEGMENT] for i in range(0, length, SEGMENT)]

    right = [
        one(length, f"{length} bytes", root(cut(length)))
        for length in (328, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 5 * SEGMENT + 7)
    ]
    size = 3 * SEGMENT
    three = cut(size)
    wrong = {
        "leaf label for node": root(three, node_label="leaf"),
        "node label for leaf": root(three, leaf_label="node"),
        "node label for root": root(three, root_label="node"),
        "length missing": root(three, length=b""),
        "length little-endian": root(three, length=size.to_bytes(8, "little")),
        "length of the plaintext": root(three, length=(size - 56 - 16 * 193).to_bytes(8, "big")),
        "segments swapped": root([three[1], three[0], three[2]]),
        "odd node doubled": root(three, odd_doubled=True),
        "left and right exchanged": root(three, flipped=True),
        "last segment dropped": root(three[:2], length=size.to_bytes(8, "big")),
        "top node alone": digest(
            "node", digest("node", digest("leaf", three[0]) + digest("leaf", three[1])) + digest("leaf", three[2])
        ).hex(),
    }
    single = {
        "leaf alone": digest("leaf", cut(SEGMENT)[0]).hex(),
        "no labels": hashlib.sha256(cut(SEGMENT)[0]).hexdigest(),
    }
    return (
        right
        + [one(size, name, found, "untrusted-input") for name, found in wrong.items()]
        + [one(SEGMENT, name, found, "untrusted-input") for name, found in single.items()]
    )


def text_vectors() -> list[dict[str, Any]]:
    """Descriptors and reasons."""
    salt, label = "walytis-vault/content-subkey/v1", "walytis-vault/descriptor/v1"
    fields = {"name": "plan.txt", "media_type": "text/plain", "labels": ["a", "b"], "length": 5, "note": None}
    raw = msgspec.msgpack.encode(fields)
    framed = (len(raw).to_bytes(2, "big") + raw).ljust(192, b"\x00")
    good = box(subkey(KEY, salt, label), label, CONTENT_ID, framed)
    dirty = framed[:-1] + b"\x01"
    liar = (1000).to_bytes(2, "big") + framed[2:]
    long_name = msgspec.msgpack.encode({"name": "x" * 4097, "length": 1})
    long_framed = (len(long_name).to_bytes(2, "big") + long_name).ljust(8128, b"\x00")
    negative = msgspec.msgpack.encode({"length": -1})
    reason_label = "walytis-vault/reason/v1"
    reason = (5).to_bytes(2, "big") + b"wrong"
    sealed_reason = box(subkey(KEY, salt, reason_label), reason_label, CONTENT_ID, reason.ljust(192, b"\x00"))

    def one(name: str, data: bytes, error: str | None, kind: str = "descriptor") -> dict[str, Any]:
        opened = None if error else fields if kind == "descriptor" else "wrong"
        return {
            "kind": kind,
            "name": name,
            "key": KEY.hex(),
            "content_id": CONTENT_ID.hex(),
            "sealed": data.hex(),
            "opened": opened,
            "error": error,
        }

    def sealed(plain: bytes, key: bytes = KEY, where: bytes = CONTENT_ID, use: str = label) -> bytes:
        return box(subkey(key, salt, use), use, where, plain)

    return [
        one("good", good, None),
        one("bit flipped", good[:-1] + bytes([good[-1] ^ 1]), "untrusted-input"),
        one("cut", good[:-1], "untrusted-input"),
        one("empty", b"", "untrusted-input"),
        one("of another content", sealed(framed, where=OTHER_ID), "untrusted-input"),
        one("under another key", sealed(framed, key=OTHER_KEY), "untrusted-input"),
        one("sealed as a reason", sealed(framed, use=reason_label), "untrusted-input"),
        one("padding not zero", sealed(dirty), "untrusted-input"),
        one("length beyond the end", sealed(liar), "untrusted-input"),
        one("size that does not occur", sealed(framed + b"\x00"), "untrusted-input"),
        one("not MessagePack", sealed((1).to_bytes(2, "big") + b"\xc1" + bytes(189)), "untrusted-input"),
        one("name too long", sealed(long_framed), "untrusted-input"),
        one(
            "negative length",
            sealed((len(negative).to_bytes(2, "big") + negative).ljust(192, b"\x00")),
            "untrusted-input",
        ),
        one("good reason", sealed_reason, None, "reason"),
        one("no reason", b"", None, "reason") | {"opened": ""},
        one("descriptor as a reason", good, "untrusted-input", "reason"),
        one(
            "reason not UTF-8",
            sealed(((2).to_bytes(2, "big") + b"\xff\xfe").ljust(192, b"\x00"), use=reason_label),
            "untrusted-input",
            "reason",
        ),
    ]


def slot_vectors() -> list[dict[str, Any]]:
    """Slots of 128 bytes under a known master key; a defect reads as an empty slot."""
    label = "walytis-vault/slot/v1"
    slot_key = subkey(MASTER, "walytis-vault/master-subkey/v1", label)
    plain = (b"\x01" + CONTENT_ID + KEY).ljust(100, b"\x00")

    def sealed(
        data: bytes = plain, number: int = 3, vault: str = VAULT, key: bytes = slot_key, use: str = label
    ) -> bytes:
        return box(key, use, joined(vault.encode(), number.to_bytes(8, "big")), data)

    def one(name: str, data: bytes, *, opens: bool = False) -> dict[str, Any]:
        return {
            "kind": "slot",
            "name": name,
            "master": MASTER.hex(),
            "vault_id": VAULT,
            "slot": 3,
            "bytes": data.hex(),
            "content_id": CONTENT_ID.hex() if opens else None,
            "key": KEY.hex() if opens else None,
        }

    good = sealed()
    return [
        one("good", good, opens=True),
        one("bit flipped", bytes([good[0] ^ 1]) + good[1:]),
        one("of another slot", sealed(number=4)),
        one("of another vault", sealed(vault="vault-2")),
        one("under another key", sealed(key=OTHER_KEY)),
        one("under another label", sealed(use="walytis-vault/secrets/v1")),
        one("unknown version", sealed(b"\x02" + plain[1:])),
        one("first reserved byte not zero", sealed(plain[:49] + b"\x01" + plain[50:])),
        one("last reserved byte not zero", sealed(plain[:-1] + b"\x01")),
        one("random", stream("slot", 128)),
        one("zeros", bytes(128)),
    ]


def make() -> str:
    """The whole file."""
    vectors = content_vectors() + root_vectors() + text_vectors() + slot_vectors()
    return json.dumps({"version": 1, "vectors": vectors}, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(make())
