"""Statements certified by a DID's control keys, and our own check of them (security.md U2).

Upstream's check believes the key inside a signature. Here the key must be one that the DID's own chain has on
record, of all families, and every one of its signatures must hold. A certificate is MessagePack:
[1, SHA-256 of the control keys' id, [one signature for each key, in order]].
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from msgspec import Meta

LABEL: Final = b"\xffwalytis-vault/did-certificate/v1\x00"
VERSION: Final = 1
FAMILIES: Final = ("EC-secp256k1", "PQ-ML-KEM-768-ML-DSA-65")
KEM_768_PUBLIC_BYTES: Final = 1184
DID_PREFIX: Final = "did:walytisidentities:"
CONTROL_KEY_TOPIC: Final = b"control_key"
MAX_CONTROL_BLOCK: Final = 64 << 10
"""Bytes of a control-key block that are looked at; honest ones have about 30 kB."""

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
SignatureBytes = Annotated[bytes, Meta(max_length=8192)]


class Certificate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A certificate taken apart."""

    version: int
    keys: Hash
    signatures: Annotated[tuple[SignatureBytes, ...], Meta(min_length=1, max_length=4)]


class PublicKey(msgspec.Struct, frozen=True):
    """One public control key."""

    family: str
    public: bytes


class ControlKeys(msgspec.Struct, frozen=True):
    """The control keys of a DID at one time, one for each family."""

    key_id: str
    keys: tuple[PublicKey, ...]

    def digest(self) -> bytes:
        """What a certificate names them by."""
        return hashlib.sha256(self.key_id.encode()).digest()

    def verify(self, signatures: tuple[bytes, ...], message: bytes) -> bool:
        """Whether there is one valid signature of every family."""
        if len(signatures) != len(self.keys):
            return False
        return all(_verify(key, s, message) for key, s in zip(self.keys, signatures, strict=True))


def encode(key_id: str, signatures: Iterable[bytes]) -> bytes:
    """Put a certificate together."""
    digest = hashlib.sha256(key_id.encode()).digest()
    return msgspec.msgpack.encode(Certificate(VERSION, digest, tuple(signatures)))


def check(history: Iterable[ControlKeys], statement: bytes, certificate: bytes) -> bool:
    """Whether one of the recorded control keys certified the statement. Never raises on hostile bytes."""
    try:
        parsed = msgspec.msgpack.decode(certificate, type=Certificate, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if parsed.version != VERSION:
        return False
    for keys in history:
        if keys.digest() == parsed.keys:
            return keys.verify(parsed.signatures, LABEL + statement)
    return False


def parse_key_id(key_id: str) -> ControlKeys | None:
    """Control keys from upstream's id of a key group; None unless it has each family exactly once, in order."""
    keys = []
    for part in key_id.split("|")[1:]:
        fields = part.split(":")
        try:
            keys.append(PublicKey(":".join(fields[:-2]), bytes.fromhex(fields[-1])))
        except (ValueError, IndexError):
            return None
    if tuple(key.family for key in keys) != FAMILIES or not key_id.startswith("|"):
        return None
    return ControlKeys(key_id, tuple(keys))


def control_key_history(blocks: Iterable[bytes]) -> list[ControlKeys]:
    """The control keys that a DID ever had, from the contents of its chain's control-key blocks, oldest first.

    The first block must be signed by the keys that it announces; every later one by the keys before it. Others
    are passed over: anyone can append to a chain.
    """
    history: list[ControlKeys] = []
    for content in blocks:
        update = _parse_update(content)
        if update is None:
            continue
        old, new, signatures, signed = update
        if (old.key_id != history[-1].key_id) if history else (old.key_id != new.key_id):
            continue
        if old.verify(signatures, signed) and (not history or new.key_id != old.key_id):
            history.append(new)
    return history


def _parse_update(content: bytes) -> tuple[ControlKeys, ControlKeys, tuple[bytes, ...], bytes] | None:
    if len(content) > MAX_CONTROL_BLOCK:
        return None
    try:
        fields = json.loads(content)
        old_id, new_id = fields["old_keys"], fields["new_keys"]
        raw = base64.urlsafe_b64decode(fields["signature"] + "===")
        signatures = tuple(bytes.fromhex(part) for part in raw.decode().split("-"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(old_id, str) or not isinstance(new_id, str):
        return None
    old, new = parse_key_id(old_id), parse_key_id(new_id)
    if old is None or new is None:
        return None
    return old, new, signatures, f"{old_id}--{new_id}".encode()


def _verify(key: PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        if key.family == FAMILIES[0]:
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), key.public)
            point.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            mldsa.MLDSA65PublicKey.from_public_bytes(key.public[KEM_768_PUBLIC_BYTES:]).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
