"""Signatures: two families, both must hold; nothing that a stranger could have chosen is ever signed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.domain.batch import SIGNATURE_BYTES, key_id_of
from walytis_vault.domain.errors import MisuseError, UntrustedInputError

SIGNER = HybridSigner.from_private_bytes(bytes(range(64)))
OTHER = HybridSigner.from_private_bytes(bytes(range(1, 65)))
MESSAGE = b"\xffwalytis-vault/batch/v1\x00body"
SIGNATURE = SIGNER.sign(MESSAGE)


def verify(signature: bytes = SIGNATURE, message: bytes = MESSAGE, signer: HybridSigner = SIGNER) -> bool:
    return HybridVerifier().verify(
        ed25519=signer.ed25519_public, ml_dsa_65=signer.ml_dsa_65_public, signature=signature, message=message
    )


def test_a_signature_verifies_with_the_signers_keys_only() -> None:
    """The right keys accept, others refuse."""
    assert verify()
    assert not verify(signer=OTHER)
    assert len(SIGNATURE) == SIGNATURE_BYTES
    assert SIGNER.key_id == key_id_of(SIGNER.ed25519_public, SIGNER.ml_dsa_65_public)


def test_a_key_survives_storage() -> None:
    """A key restored from its private bytes is the same key."""
    fresh = HybridSigner.generate()
    again = HybridSigner.from_private_bytes(fresh.private_bytes())
    assert again.key_id == fresh.key_id
    assert verify(again.sign(MESSAGE), signer=fresh)
    for length in (0, 63, 65):
        with pytest.raises(UntrustedInputError):
            HybridSigner.from_private_bytes(bytes(length))


@pytest.mark.parametrize("message", [b"", b"text a stranger chose", b"\x00\xff", b"\xfe"])
def test_only_messages_that_begin_with_ff_are_signed(message: bytes) -> None:
    """What text can be is never signed, and a signature over it is never accepted."""
    with pytest.raises(MisuseError):
        SIGNER.sign(message)
    assert not verify(message=message)


def test_both_families_must_hold() -> None:
    """One good signature of two is no signature."""
    theirs = OTHER.sign(MESSAGE)
    assert not verify(SIGNATURE[:64] + theirs[64:])
    assert not verify(theirs[:64] + SIGNATURE[64:])
    assert not verify(signature=SIGNATURE[64:] + SIGNATURE[:64])


@given(st.integers(0, SIGNATURE_BYTES * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    """No bit of the signature may change."""
    changed = bytearray(SIGNATURE)
    changed[bit // 8] ^= 1 << bit % 8
    assert not verify(bytes(changed))


@given(st.binary(max_size=4000), st.binary(max_size=2000), st.binary(max_size=40))
def test_hostile_input_is_refused_quietly(signature: bytes, ml_dsa_65: bytes, ed25519: bytes) -> None:
    """Whatever the sizes and bytes, the verifier answers False and raises nothing."""
    verifier = HybridVerifier()
    assert not verifier.verify(ed25519=ed25519, ml_dsa_65=ml_dsa_65, signature=signature, message=MESSAGE)
    padded = ml_dsa_65.ljust(1952, b"\x01"), ed25519.ljust(32, b"\x01")[:32], signature.ljust(SIGNATURE_BYTES, b"\x01")
    assert not verifier.verify(
        ml_dsa_65=padded[0][:1952], ed25519=padded[1], signature=padded[2][:SIGNATURE_BYTES], message=MESSAGE
    )
