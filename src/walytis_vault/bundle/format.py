"""The lines of a bundle: what they hold, and the one way in which each is written.

A line is a function of what it says, byte for byte, and a file is a function of its set of batches (but for who
exported it and when). So whoever checks a bundle makes each line again and compares. Format: docs/bundle-format.md.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from walytis_vault.domain.batch import ENVELOPE_BYTES, SIGNATURE_BYTES, SignedBatch
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.limits import LIMITS
from walytis_vault.projections.paging import iso

BUNDLE_FORMAT: Final = 1
BUNDLE_LABEL: Final = b"\xffwalytis-vault/bundle/v1\x00"
"""What the exporting device signs begins with this."""
MAX_ENVELOPE: Final = ENVELOPE_BYTES + LIMITS.batch_body
MAX_LINE: Final = 4 << 20
"""Bytes of one line with its end: a full batch in Base64, and the topics of all its events."""

T = TypeVar("T", bound=msgspec.Struct)
Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", min_length=64, max_length=64)]
Text = Annotated[str, Meta(max_length=LIMITS.did)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all lines; fields stand in this order in the file."""


class Head(Line, frozen=True, kw_only=True):
    """The first line: which vault."""

    type: Literal["walytis-vault-bundle"] = "walytis-vault-bundle"
    format: int = BUNDLE_FORMAT
    vault_id: Annotated[str, Meta(min_length=1, max_length=128)]
    root: Hex32
    """Id of the founding batch: all else is verified from it."""


class BatchLine(Line, frozen=True, kw_only=True):
    """One batch. All but `envelope` repeats, for people and simple tools, what the envelope says."""

    type: Literal["batch"] = "batch"
    n: Count
    """1, 2, 3 …"""
    depth: Count
    id: Hex32
    device: Text
    number: Count
    time: Annotated[str, Meta(max_length=64)]
    """By the author's clock, ISO 8601 (UTC)."""
    events: Annotated[tuple[Annotated[str, Meta(max_length=128)], ...], Meta(max_length=LIMITS.batch_events)]
    """Their types."""
    envelope: Annotated[str, Meta(max_length=4 * (MAX_ENVELOPE // 3 + 1))]
    """Base64 of the block's content: version, both signatures, body (docs/wire-format.md, "Batch")."""


class End(Line, frozen=True, kw_only=True):
    """The last line: how much there is, and who says so."""

    type: Literal["end"] = "end"
    batches: Count
    events: Count
    heads: Annotated[tuple[Hex32, ...], Meta(max_length=1 << 16)]
    """Batches that no other names as its cause, sorted."""
    digest: Hex32
    """SHA-256 of every byte before this line."""
    time: Annotated[str, Meta(max_length=64)]
    device: Text
    key_id: Hex32
    signature: Annotated[str, Meta(max_length=4 * (SIGNATURE_BYTES // 3 + 1))] = ""
    """Base64 of both signatures over `signed_bytes`."""


def encode(line: Line) -> bytes:
    """The line as it stands in the file, with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode(line: bytes, kind: type[T]) -> T:
    """Read a line. Raises UntrustedInputError unless it is of this kind and written in the one way."""
    try:
        found = msgspec.json.decode(line, type=kind, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise UntrustedInputError(f"not a line of this kind: {e}") from e
    if msgspec.json.encode(found) + b"\n" != line:
        raise UntrustedInputError("it is not written as such a line is")
    return found


def batch_line(batch: SignedBatch, *, n: int, depth: int) -> BatchLine:
    """The line of a batch."""
    body = batch.body
    return BatchLine(
        n=n,
        depth=depth,
        id=batch.batch_id.hex(),
        device=body.author,
        number=body.number,
        time=iso(body.time_ms),
        events=tuple(event.topic for event in body.events),
        envelope=base64.b64encode(batch.envelope()).decode(),
    )


def signed_bytes(end: End) -> bytes:
    """What the exporting device signs: the label, and the last line without its signature."""
    return BUNDLE_LABEL + msgspec.json.encode(msgspec.structs.replace(end, signature=""))


def from_base64(text: str) -> bytes:
    """Strict Base64. Raises UntrustedInputError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise UntrustedInputError("its Base64 is malformed") from e
