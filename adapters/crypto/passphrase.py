"""A key from a passphrase: Argon2id, with a floor and a ceiling on its parameters.

Refuses stored parameters below the floor (someone weakened the file) and above the ceiling (someone wants
our memory). Format: docs/wire-format-content.md, "Master key".
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from msgspec import Meta

from walytis_vault.adapters.crypto.sealing import KEY_BYTES
from walytis_vault.domain.errors import MisuseError, StorageError, UntrustedInputError

SALT_BYTES: Final = 32
MIN_MEMORY_KIB: Final = 64 << 10
MAX_MEMORY_KIB: Final = 1 << 20
MIN_ITERATIONS: Final = 3
MAX_ITERATIONS: Final = 32
MAX_LANES: Final = 16
MAX_PASSPHRASE_BYTES: Final = 4096


class Argon2Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of Argon2id, and its salt."""

    memory_kib: int = MIN_MEMORY_KIB
    iterations: int = MIN_ITERATIONS
    lanes: int = 4
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]

    def check(self) -> None:
        """Raise UntrustedInputError for parameters outside floor and ceiling."""
        if not MIN_MEMORY_KIB <= self.memory_kib <= MAX_MEMORY_KIB:
            raise UntrustedInputError(f"the key file asks for {self.memory_kib} KiB of Argon2 memory: refused")
        if not MIN_ITERATIONS <= self.iterations <= MAX_ITERATIONS or not 1 <= self.lanes <= MAX_LANES:
            raise UntrustedInputError("the key file asks for unusual Argon2 parameters: refused")


def key_from_passphrase(passphrase: str, parameters: Argon2Parameters) -> bytes:
    """Stretch a passphrase to 32 bytes (about 0.15 s and 64 MiB with the default parameters).

    The passphrase is normalised (Unicode NFC) first, so that keyboards of different systems agree.

    Raises:
        MisuseError: an empty or oversized passphrase.
        UntrustedInputError: parameters outside floor and ceiling.
        StorageError: this machine cannot do it, whatever the passphrase: too little memory, or no Argon2id.
    """
    parameters.check()
    try:
        raw = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError as e:
        raise MisuseError("the passphrase is not valid Unicode text") from e
    if not 0 < len(raw) <= MAX_PASSPHRASE_BYTES:
        raise MisuseError(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes")
    try:
        return Argon2id(
            salt=parameters.salt,
            length=KEY_BYTES,
            iterations=parameters.iterations,
            lanes=parameters.lanes,
            memory_cost=parameters.memory_kib,
        ).derive(raw)
    except MemoryError as e:
        raise StorageError(
            f"too little memory to stretch the passphrase: {parameters.memory_kib >> 10} MiB must be free; repeat then"
        ) from e
    except UnsupportedAlgorithm as e:
        raise StorageError("the OpenSSL of this installation has no Argon2id: install a newer `cryptography`") from e
