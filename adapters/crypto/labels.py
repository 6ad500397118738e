"""Domain separation in one place: every label of content at rest, and how parts are joined without ambiguity.

A label names format and version; two uses of a key never share one. Listed in docs/wire-format-content.md.
"""

from __future__ import annotations

from typing import Final

CONTENT_CONTEXT: Final = b"walytis-vault/content/v1"
LEAF: Final = b"walytis-vault/leaf/v1\x00"
NODE: Final = b"walytis-vault/node/v1\x00"
ROOT: Final = b"walytis-vault/root/v1\x00"
SUBKEY_SALT: Final = b"walytis-vault/content-subkey/v1"
DESCRIPTOR: Final = b"walytis-vault/descriptor/v1"
REASON: Final = b"walytis-vault/reason/v1"
REQUEST: Final = b"walytis-vault/request/v1"
MASTER_SALT: Final = b"walytis-vault/master-subkey/v1"
MASTER_WRAP: Final = b"walytis-vault/master-wrap/v1"
SECRETS: Final = b"walytis-vault/secrets/v1"
SLOTS: Final = b"walytis-vault/slot/v1"


def join_parts(*parts: bytes) -> bytes:
    """Join parts so that no two lists of parts give the same bytes: each with its length (4 bytes, big-endian)."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
