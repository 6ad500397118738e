"""The private keys under which the identity library keeps its key stores on disk.

One for the device's store and one for the group's. They are serialised here as one JSON text, which the vault
seals under its master key; nothing else of ours ever goes into those stores (security.md U5).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from walytis_vault.domain.errors import MisuseError

FAMILY: Final = "EC-secp256k1"
_TIME_FORMAT: Final = "%Y.%m.%d_%H.%M.%S.%f"


class StoreKey(msgspec.Struct, frozen=True):
    """One key as upstream's `Key.serialise_private` writes it."""

    family: str
    public_key: str
    private_key: str
    creation_time: str


class StoreKeys(msgspec.Struct, frozen=True):
    """The keys of both stores."""

    device: StoreKey
    group: StoreKey


def new_store_key() -> bytes:
    """Make fresh keys for both stores. Keep the result secret and sealed."""
    return msgspec.json.encode(StoreKeys(device=_new(), group=_new()))


def parse_store_key(key: bytes) -> StoreKeys:
    """Read what `new_store_key` made. Raises MisuseError."""
    try:
        return msgspec.json.decode(key, type=StoreKeys, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise MisuseError("not a key of an identity's key stores") from e


def _new() -> StoreKey:

    private = ec.generate_private_key(ec.SECP256K1())
    public = private.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return StoreKey(
        family=FAMILY,
        public_key=public.hex(),
        private_key=private.private_numbers().private_value.to_bytes(32, "big").hex(),
        creation_time=datetime.now(UTC).strftime(_TIME_FORMAT),
    )
