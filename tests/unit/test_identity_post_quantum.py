"""The stand-in for liboqs: standard sizes, and interoperation with an independent implementation."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import mldsa, mlkem
from hypothesis import given, settings
from hypothesis import strategies as st

from walytis_vault.adapters.walytis import post_quantum
from walytis_vault.domain.errors import MisuseError

KEMS: dict[str, Any] = {"ML-KEM-768": mlkem.MLKEM768PublicKey, "ML-KEM-1024": mlkem.MLKEM1024PublicKey}
SIGNATURES: dict[str, Any] = {"ML-DSA-65": mldsa.MLDSA65PublicKey, "ML-DSA-87": mldsa.MLDSA87PublicKey}
PRIVATE: dict[str, Any] = {"ML-DSA-65": mldsa.MLDSA65PrivateKey, "ML-DSA-87": mldsa.MLDSA87PrivateKey}
oqs = post_quantum.stand_in()


@pytest.mark.parametrize("name", KEMS)
def test_another_implementation_encapsulates_to_our_keys(name: str) -> None:
    """A secret that `cryptography` encapsulates to our public key is the one that we get out."""
    with post_quantum.KeyEncapsulation(name) as kem:
        public = kem.generate_keypair()
        shared, ciphertext = KEMS[name].from_public_bytes(public).encapsulate()
        assert kem.decap_secret(ciphertext) == shared
        assert (len(public), len(kem.export_secret_key()), len(ciphertext)) == post_quantum.KEM_SIZES[name]


@pytest.mark.parametrize("name", KEMS)
def test_encapsulation_goes_both_ways(name: str) -> None:
    """What we encapsulate we decapsulate; with another key or a changed ciphertext the secret is another."""
    with post_quantum.KeyEncapsulation(name) as kem, post_quantum.KeyEncapsulation(name) as other:
        ciphertext, shared = kem.encap_secret(kem.generate_keypair())
        other.generate_keypair()
        assert kem.decap_secret(ciphertext) == shared
        assert other.decap_secret(ciphertext) != shared
        assert kem.decap_secret(bytes([ciphertext[0] ^ 1]) + ciphertext[1:]) != shared


@pytest.mark.parametrize("name", SIGNATURES)
def test_another_implementation_verifies_our_signatures(name: str) -> None:
    """`cryptography` accepts what we sign, and refuses it over another message."""
    with post_quantum.Signature(name) as signer:
        public = signer.generate_keypair()
        signature = signer.sign(b"message")
        assert (len(public), len(signer.export_secret_key()), len(signature)) == post_quantum.SIGNATURE_SIZES[name]
    key = SIGNATURES[name].from_public_bytes(public)
    key.verify(signature, b"message")
    with pytest.raises(InvalidSignature):
        key.verify(signature, b"another")


@pytest.mark.parametrize("name", SIGNATURES)
def test_we_verify_another_implementations_signatures(name: str) -> None:
    """We accept what `cryptography` signs, and nothing that was changed; hostile sizes are false, not an error."""
    private = PRIVATE[name].generate()
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"message")
    with post_quantum.Signature(name) as verifier:
        assert verifier.verify(b"message", signature, public)
        assert not verifier.verify(b"another", signature, public)
        assert not verifier.verify(b"message", signature[:-1], public)
        assert not verifier.verify(b"message", signature, public[1:])
        assert not verifier.verify(b"message", bytes(len(signature)), public)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 6000).filter(lambda n: n not in {1184, 2400, 1088, 1952, 4032, 3309}))
def test_wrong_sizes_are_refused(size: int) -> None:
    """Keys and ciphertexts that do not have the standard's size are refused before any algorithm sees them."""
    with pytest.raises(MisuseError):
        post_quantum.KeyEncapsulation("ML-KEM-768", bytes(size))
    with pytest.raises(MisuseError):
        post_quantum.KeyEncapsulation("ML-KEM-768").encap_secret(bytes(size))
    with pytest.raises(MisuseError):
        post_quantum.Signature("ML-DSA-65", bytes(size))


def test_unknown_schemes_and_missing_keys_are_refused() -> None:
    """Only the four schemes exist, and nothing is signed without a key or after it was freed."""
    with pytest.raises(MisuseError):
        post_quantum.KeyEncapsulation("Kyber768")
    signer = post_quantum.Signature("ML-DSA-65")
    with pytest.raises(MisuseError):
        signer.sign(b"x")
    with signer:
        signer.generate_keypair()
    with pytest.raises(MisuseError):
        signer.export_secret_key()


def test_the_module_has_what_upstream_calls() -> None:
    """The stand-in offers liboqs-python's classes under its names."""
    assert oqs.KeyEncapsulation is post_quantum.KeyEncapsulation
    assert oqs.Signature is post_quantum.Signature


def test_installing_makes_upstreams_import_safe(tmp_path: Path) -> None:
    """In a fresh process without liboqs the import that upstream does finds the stand-in and builds nothing."""
    code = (
        "from walytis_vault.adapters.walytis import post_quantum, quiet;"
        "from pathlib import Path;"
        f"quiet.hush(Path({str(tmp_path)!r}));"
        "first = post_quantum.install(); assert post_quantum.install() == first;"
        "import multi_crypt; keys = multi_crypt.generate_keys('PQ-ML-KEM-768-ML-DSA-65');"
        "print(first, len(keys[0]))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() in (["pqcrypto", "3136"], ["liboqs", "3136"]), done.stderr
    assert not list(tmp_path.iterdir())


def test_real_liboqs_is_looked_for_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named liboqs.so that is no library does not make us import oqs, which would build it from the net."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "liboqs.so").write_bytes(b"no library")
    monkeypatch.setenv("OQS_INSTALL_PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "oqs", raising=False)
    assert post_quantum._candidates()[0] == tmp_path / "lib" / "liboqs.so"
    assert post_quantum.install() in {"pqcrypto", "liboqs"}
    assert importlib.import_module("oqs").KeyEncapsulation
    monkeypatch.delitem(sys.modules, "oqs", raising=False)
