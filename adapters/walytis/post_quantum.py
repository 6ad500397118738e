"""A stand-in for liboqs-python, the module `oqs`, over the wheel-only package pqcrypto.

Upstream's key library imports `oqs`; where the shared library is missing, that import clones and builds liboqs
and may end the process. So this module looks for the shared library without importing `oqs`, uses the real one
where it is there and complete, and otherwise puts the stand-in into `sys.modules`. It offers only the four
schemes that upstream uses and refuses keys, ciphertexts and signatures that do not have the standard's size
(FIPS 203, FIPS 204).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any, Final, Self

from walytis_vault.domain.errors import MisuseError

KEM_SIZES: Final = {"ML-KEM-768": (1184, 2400, 1088), "ML-KEM-1024": (1568, 3168, 1568)}
"""Bytes of public key, secret key, ciphertext (FIPS 203, table 3)."""
SHARED_SECRET_BYTES: Final = 32
SIGNATURE_SIZES: Final = {"ML-DSA-65": (1952, 4032, 3309), "ML-DSA-87": (2592, 4896, 4627)}
"""Bytes of public key, secret key, signature (FIPS 204, table 2)."""
_MODULES: Final = {
    "ML-KEM-768": "pqcrypto.kem.ml_kem_768",
    "ML-KEM-1024": "pqcrypto.kem.ml_kem_1024",
    "ML-DSA-65": "pqcrypto.sign.ml_dsa_65",
    "ML-DSA-87": "pqcrypto.sign.ml_dsa_87",
}


def install() -> str:
    """Make `import oqs` safe. Idempotent.

    Returns:
        "liboqs" when the real library will be used, "pqcrypto" when the stand-in is in place.
    """
    present = sys.modules.get("oqs")
    if present is not None:
        return "pqcrypto" if getattr(present, "__walytis_vault__", False) else "liboqs"
    if _real_liboqs_is_usable():
        return "liboqs"
    sys.modules["oqs"] = stand_in()
    return "pqcrypto"


def stand_in() -> types.ModuleType:
    """The module object that replaces `oqs`."""
    module = types.ModuleType("oqs", "Stand-in for liboqs-python over pqcrypto.")
    module.__dict__.update(
        KeyEncapsulation=KeyEncapsulation,
        Signature=Signature,
        get_enabled_kem_mechanisms=lambda: tuple(KEM_SIZES),
        get_enabled_sig_mechanisms=lambda: tuple(SIGNATURE_SIZES),
        __walytis_vault__=True,
    )
    return module


class _Scheme:
    """What both kinds share: a context manager that forgets its secret key."""

    _sizes: dict[str, tuple[int, int, int]]

    def __init__(self, alg_name: str, secret_key: bytes | None = None) -> None:
        if alg_name not in self._sizes:
            raise MisuseError(f"{alg_name} is not among the schemes of the stand-in: {', '.join(self._sizes)}")
        self.alg_name = alg_name
        self._public_size, self._secret_size, self._output_size = self._sizes[alg_name]
        self._functions: Any = importlib.import_module(_MODULES[alg_name])
        self._secret: bytes | None = None
        if secret_key is not None:
            self._secret = _sized(secret_key, self._secret_size, "secret key")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def free(self) -> None:
        """Drop the secret key."""
        self._secret = None

    def generate_keypair(self) -> bytes:
        """Make a key pair, keep the secret key, return the public key."""
        public, secret = self._functions.keygen()
        self._secret = _sized(secret, self._secret_size, "secret key")
        return _sized(public, self._public_size, "public key")

    def export_secret_key(self) -> bytes:
        """The secret key. Raises MisuseError when there is none."""
        if self._secret is None:
            raise MisuseError("no secret key: generate or pass one first")
        return self._secret


class KeyEncapsulation(_Scheme):
    """ML-KEM, with liboqs-python's method names."""

    _sizes = KEM_SIZES

    def encap_secret(self, public_key: bytes) -> tuple[bytes, bytes]:
        """Return (ciphertext, shared secret of 32 bytes)."""
        pair = self._functions.encaps(_sized(public_key, self._public_size, "public key"))
        ciphertext, shared = sorted((bytes(pair[0]), bytes(pair[1])), key=len, reverse=True)
        return _sized(ciphertext, self._output_size, "ciphertext"), _sized(shared, SHARED_SECRET_BYTES, "secret")

    def decap_secret(self, ciphertext: bytes) -> bytes:
        """Return the shared secret. A forged ciphertext gives an unrelated one, as FIPS 203 says."""
        sized = _sized(ciphertext, self._output_size, "ciphertext")
        return _sized(self._functions.decaps(self.export_secret_key(), sized), SHARED_SECRET_BYTES, "secret")


class Signature(_Scheme):
    """ML-DSA (pure mode, empty context), with liboqs-python's method names."""

    _sizes = SIGNATURE_SIZES

    def sign(self, message: bytes) -> bytes:
        """Sign with the kept secret key."""
        made = self._functions.sign(self.export_secret_key(), bytes(message))
        return _sized(made, self._output_size, "signature")

    def verify(self, message: bytes, signature: bytes, public_key: bytes) -> bool:
        """Whether the signature is valid. Never raises on hostile bytes."""
        if len(signature) != self._output_size or len(public_key) != self._public_size:
            return False
        try:
            return self._functions.verify(bytes(public_key), bytes(message), bytes(signature)) is not False
        except Exception:  # pqcrypto raises an error of its own for a bad signature, another for a bad key
            return False


def _sized(value: bytes, size: int, what: str) -> bytes:
    if len(value) != size:
        raise MisuseError(f"a {what} of this scheme has {size} bytes, not {len(value)}")
    return bytes(value)


def _real_liboqs_is_usable() -> bool:
    """Whether `import oqs` would find a liboqs that has all four schemes, found out without importing it."""
    if importlib.util.find_spec("oqs") is None:
        return False
    for candidate in _candidates():
        try:
            library = ctypes.CDLL(str(candidate))
            schemes = [(library.OQS_KEM_alg_is_enabled, n) for n in KEM_SIZES]
            schemes += [(library.OQS_SIG_alg_is_enabled, n) for n in SIGNATURE_SIZES]
            if all(is_enabled(name.encode()) for is_enabled, name in schemes):
                return True
        except (OSError, AttributeError):
            continue
    return False


def _candidates() -> list[Path]:
    """The places where liboqs-python itself looks. Nothing is run unless a file makes it worth while."""
    root = Path(os.environ["OQS_INSTALL_PATH"]) if "OQS_INSTALL_PATH" in os.environ else Path.home() / "_oqs"
    found = [path for sub in ("lib", "lib64") if (path := root / sub / "liboqs.so").is_file()]
    folders = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    folders += [Path(p) for p in ("/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib")]
    folders += list(Path("/usr/lib").glob("*-linux-*"))
    if any(next(folder.glob("liboqs.so*"), None) for folder in folders if folder.is_dir()):
        # Only what this function finds will be found by liboqs-python.
        name = ctypes.util.find_library("oqs")
        found += [Path(name)] if name else []
    return found
