"""Names for the ids, digests and key kinds that travel through the system, and how people write them.

Ids are raw bytes inside; `hex` digits at the surface (command line, Python, JSON).
"""

from __future__ import annotations

from typing import NewType

from walytis_vault.domain.errors import MisuseError

VaultId = NewType("VaultId", str)
"""Id of the log chain (the IPFS CID of its first block)."""
Did = NewType("Did", str)
"""Decentralised identifier of a member or a device."""
ContentId = NewType("ContentId", bytes)
"""16 bytes that follow from the author's name and a random nonce; never a hash of the plaintext."""
BallotId = NewType("BallotId", bytes)
"""16 bytes that follow from the proposer's name, the question and a random nonce."""
BatchId = NewType("BatchId", bytes)
"""32 bytes: SHA-256 over the signed bytes of a batch."""
KeyId = NewType("KeyId", bytes)
"""32 bytes: SHA-256 over a device's two public signing keys."""
Position = NewType("Position", int)
"""This node's own number for an event: 1, 2, 3 … without gaps."""
ContentKey = NewType("ContentKey", bytes)
"""32 random bytes that encrypt one content. Destroying it is what forgetting means."""
Root = NewType("Root", bytes)
"""32 bytes: root of the SHA-256 tree over a content's ciphertext segments."""

ID_BYTES = 16
DIGEST_BYTES = 32


def parse_content_id(text: object) -> ContentId:
    """Read a content id as people write it.

    Args:
        text: 32 hex digits.
    Raises:
        MisuseError: anything else.
    """
    return ContentId(_parse_hex(text, "content"))


def parse_ballot_id(text: object) -> BallotId:
    """Read a ballot id (32 hex digits). Raises MisuseError for anything else."""
    return BallotId(_parse_hex(text, "ballot"))


def _parse_hex(text: object, kind: str) -> bytes:
    if not isinstance(text, str):
        raise MisuseError(f"a {kind} id is a text of 32 hex digits, not {type(text).__name__}")
    if len(text) != 2 * ID_BYTES or any(c not in "0123456789abcdefABCDEF" for c in text):
        raise MisuseError(f"not a {kind} id: {text[:40]!r} (a {kind} id is 32 hex digits, as `ls` and `ballots` show)")
    return bytes.fromhex(text)
