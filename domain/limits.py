"""All size limits in one frozen place. Sizes are bytes unless the name says otherwise.

They are checked before anything is allocated for bytes from outside.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of format version 1. A test may pass smaller ones."""

    batch_body: int = 1 << 20
    """Signed bytes of one batch."""
    batch_events: int = 4096
    """Events in one batch (a count)."""
    batch_heads: int = 64
    """Other heads that one batch may name (a count)."""
    event_payload: int = 256 << 10
    """Encoded fields of one event."""
    descriptor: int = 16 << 10
    """Sealed descriptor."""
    name: int = 4096
    """UTF-8 bytes of a content's name. A name of 10 kB is refused with a clear error."""
    media_type: int = 255
    """ASCII bytes of a media type."""
    labels: int = 64
    """Labels of one content (a count)."""
    label: int = 256
    """UTF-8 bytes of one label."""
    reason: int = 4096
    """UTF-8 bytes of the reason of a proposal or refusal."""
    ballot_contents: int = 1024
    """Contents named in one proposal (a count)."""
    members: int = 1024
    """Members in one electorate (a count)."""
    did: int = 512
    """Characters of a DID."""
    devices: int = 64
    """Devices that one member may ever have had, where the next one is announced (a count)."""
    proof: int = 4096
    """A device's own signature over its announcement."""
    certificate: int = 64 << 10
    """Control-key certificate inside KeyAnnounced."""
    content: int = 1 << 40
    """Plaintext bytes of one content (1 TiB)."""


LIMITS: Final = Limits()

SEGMENT_BYTES: Final = 1 << 20
"""Ciphertext segment: the unit of the root tree, of transfer and of resumption."""
