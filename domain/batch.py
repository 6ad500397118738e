"""The batch: 1..n events of one author device, the unit that is signed and that fills one Walytis block.

This module only judges bytes: it reads no clock, opens no socket, holds no key (`Signer`, `Verifier` do).
Format: docs/wire-format.md, "Batch".
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from walytis_vault.domain.errors import NewerVersionError, UntrustedInputError
from walytis_vault.domain.events import Counter, DeviceKeys, DidText, Digest
from walytis_vault.domain.ids import BatchId, KeyId
from walytis_vault.domain.limits import LIMITS, Limits
from walytis_vault.domain.ports import Signer

BATCH_VERSION: Final = 1
BATCH_LABEL: Final = b"\xffwalytis-vault/batch/v1\x00"
"""Everything we sign starts with 0xFF, which no text that a stranger can have us sign ever does."""
KEY_LABEL: Final = b"\xffwalytis-vault/signing-key/v1\x00"
ED25519_BYTES: Final = 64
ML_DSA_65_BYTES: Final = 3309
SIGNATURE_BYTES: Final = ED25519_BYTES + ML_DSA_65_BYTES
ENVELOPE_BYTES: Final = 1 + SIGNATURE_BYTES


class EventRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One event inside a batch."""

    topic: Annotated[str, Meta(min_length=1, max_length=128)]
    payload: bytes


class BatchBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The signed part of a batch, in wire order."""

    version: int
    vault_id: Annotated[str, Meta(min_length=1, max_length=128)]
    author: DidText
    """Device DID: each device has a chain of batches of its own."""
    key_id: Digest
    number: Annotated[int, Meta(ge=1, le=2**53)]
    """1 for the device's first batch, then one more for each."""
    previous: Annotated[bytes, Meta(max_length=32)]
    """Batch id of the device's batch before this one; empty for its first."""
    heads: Annotated[tuple[Digest, ...], Meta(max_length=LIMITS.batch_heads)]
    """Batch ids of the other heads that the author had seen, sorted, without `previous`."""
    time_ms: Counter
    events: Annotated[tuple[EventRecord, ...], Meta(min_length=1, max_length=LIMITS.batch_events)]

    def parents(self) -> tuple[BatchId, ...]:
        """The batches that this one has as direct causes."""
        own = (BatchId(self.previous),) if self.previous else ()
        return own + tuple(BatchId(h) for h in self.heads)


LAST_VERSION: Final = 31
"""Versions that batches may ever have: what begins with another byte is no batch."""


class SignedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch taken apart, not yet verified: body bytes are kept exactly as received."""

    batch_id: BatchId
    signature: bytes
    raw_body: bytes
    body: BatchBody

    def envelope(self) -> bytes:
        """The block content: version byte, signature, body."""
        return bytes([BATCH_VERSION]) + self.signature + self.raw_body

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return BATCH_LABEL + self.raw_body


_body_encoder = msgspec.msgpack.Encoder()
_body_decoder = msgspec.msgpack.Decoder(BatchBody, strict=True)


def key_id_of(ed25519: bytes, ml_dsa_65: bytes) -> KeyId:
    """Id of a device's signing keys: SHA-256 over a label and both public keys."""
    return KeyId(hashlib.sha256(KEY_LABEL + ed25519 + ml_dsa_65).digest())


def key_id_of_device(keys: DeviceKeys) -> KeyId:
    """Id of announced signing keys."""
    return key_id_of(keys.ed25519, keys.ml_dsa_65)


def encode_body(body: BatchBody) -> bytes:
    """Encode a body that we are about to sign."""
    return _body_encoder.encode(body)


def batch_id_of(raw_body: bytes) -> BatchId:
    """SHA-256 over the signed bytes."""
    return BatchId(hashlib.sha256(BATCH_LABEL + raw_body).digest())


def seal_batch(body: BatchBody, signer: Signer) -> SignedBatch:
    """Encode and sign a body of our own."""
    raw_body = encode_body(body)
    signature = signer.sign(BATCH_LABEL + raw_body)
    return SignedBatch(batch_id=batch_id_of(raw_body), signature=signature, raw_body=raw_body, body=body)


def decode_batch(content: bytes, limits: Limits = LIMITS) -> SignedBatch:
    """Take the content of a block apart, strictly and within the limits.

    Args:
        content: version byte, 64 + 3309 signature bytes, body.
    Raises:
        UntrustedInputError: not a batch of version 1. The message names the reason.
    """
    if not content:
        raise UntrustedInputError("empty block")
    if content[0] != BATCH_VERSION:
        kind = NewerVersionError if BATCH_VERSION < content[0] <= LAST_VERSION else UntrustedInputError
        raise kind(f"unknown batch version {content[0]}")
    if len(content) <= ENVELOPE_BYTES:
        raise UntrustedInputError("truncated batch")
    if len(content) > ENVELOPE_BYTES + limits.batch_body:
        raise UntrustedInputError(f"batch body exceeds {limits.batch_body} bytes")
    raw_body = bytes(content[ENVELOPE_BYTES:])
    try:
        body = _body_decoder.decode(raw_body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise UntrustedInputError(f"malformed batch: {e}") from e
    _check_shape(body, limits)
    return SignedBatch(
        batch_id=batch_id_of(raw_body), signature=bytes(content[1:ENVELOPE_BYTES]), raw_body=raw_body, body=body
    )


def _check_shape(body: BatchBody, limits: Limits) -> None:
    """Refuse bodies that decode but contradict themselves."""
    if body.version != BATCH_VERSION:
        raise NewerVersionError(f"unknown batch version {body.version}: it needs a newer walytis-vault")
    if (body.number == 1) != (not body.previous):
        raise UntrustedInputError("only a device's first batch has no previous batch")
    if body.previous and len(body.previous) != 32:
        raise UntrustedInputError("the id of the previous batch is not 32 bytes")
    if list(body.heads) != sorted(set(body.heads)) or body.previous in body.heads:
        raise UntrustedInputError("heads are not sorted and distinct")
    if len(body.heads) > limits.batch_heads or len(body.events) > limits.batch_events:
        raise UntrustedInputError("too many heads or events in one batch")
    for event in body.events:
        if len(event.payload) > limits.event_payload:
            raise UntrustedInputError(f"event payload exceeds {limits.event_payload} bytes")
