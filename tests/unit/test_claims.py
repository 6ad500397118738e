"""Ids and names commit to everything that they are said to: whatever changes, the id or the statement does."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from support.log_world import Device
from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.domain import claims

VAULT, ANN, NONCE = "QmVault", "did:test:ann", bytes(range(16))


def framed(*parts: bytes) -> bytes:
    """As docs/wire-format.md says."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def test_a_content_id_is_made_as_documented_and_commits_to_all_of_it() -> None:
    """Vault, author, nonce, what it revises and when it expires."""
    label = b"\xffwalytis-vault/content-id/v1\x00"
    plain = hashlib.sha256(label + framed(VAULT.encode(), ANN.encode(), NONCE, b"", b"")).digest()[:16]
    assert claims.content_id_of(VAULT, ANN, NONCE) == plain
    ids = [
        plain,
        claims.content_id_of("QmOther", ANN, NONCE),
        claims.content_id_of(VAULT, "did:test:bob", NONCE),
        claims.content_id_of(VAULT, ANN, bytes(16)),
        claims.content_id_of(VAULT, ANN, NONCE, revises=plain),
        claims.content_id_of(VAULT, ANN, NONCE, revises=bytes(16)),
        claims.content_id_of(VAULT, ANN, NONCE, expires_ms=0),
        claims.content_id_of(VAULT, ANN, NONCE, expires_ms=1),
    ]
    assert len(set(ids)) == len(ids)


def test_a_ballot_id_is_made_as_documented_and_commits_to_the_question() -> None:
    """Vault, proposer, nonce, contents and electorate; texts that run together stay apart."""
    one, two = b"1" * 16, b"2" * 16

    def made(**changes: Any) -> bytes:
        asked = {"vault_id": VAULT, "proposer": ANN, "nonce": NONCE, "contents": [one], "electorate": [ANN, "did:b"]}
        return claims.ballot_id_of(**{**asked, **changes})

    label = b"\xffwalytis-vault/ballot-id/v1\x00"
    parts = framed(VAULT.encode(), ANN.encode(), NONCE, one, ANN.encode(), b"did:b")
    assert made() == hashlib.sha256(label + parts).digest()[:16]
    changes: Sequence[dict[str, Any]] = (
        {},
        {"vault_id": "QmOther"},
        {"proposer": "did:test:bob"},
        {"nonce": bytes(16)},
        {"contents": [two]},
        {"contents": [one, two]},
        {"electorate": [ANN]},
        {"electorate": [f"{ANN}did:b"]},
        {"electorate": [f"{ANN}d", "id:b"]},
    )
    ids = [made(**each) for each in changes]
    assert len(set(ids)) == len(ids)


def test_the_owner_of_keys_agrees_to_everything_that_is_announced_of_them() -> None:
    """With any field changed, or for another vault, the proof does not hold; and each of them is in what is signed."""
    device, other = Device("a"), Device("b")
    keys, verifier = device.keys(VAULT), HybridVerifier()
    assert claims.proves_possession(keys, VAULT, verifier)
    assert not claims.proves_possession(keys, "QmOther", verifier)
    changes: dict[str, Any] = {
        "member": "did:test:m",
        "device": other.device,
        "peer_id": "another",
        "bus": bytes(32),
        "ed25519": other.signer.ed25519_public,
        "ml_dsa_65": other.signer.ml_dsa_65_public,
    }
    assert {*changes, "proof"} == {f.name for f in msgspec.structs.fields(keys)}
    signed: list[bytes] = []

    class Noted:
        """A signer that shows what it is asked to sign."""

        def sign(self, message: bytes) -> bytes:
            signed.append(message)
            return b""

    for field, value in (("member", keys.member), *changes.items()):
        changed = msgspec.structs.replace(keys, **{field: value})
        assert claims.proves_possession(changed, VAULT, verifier) == (changed == keys)
        claims.prove_possession(changed, VAULT, Noted())  # type: ignore[arg-type]
    assert all(a != b for a, b in itertools.combinations(signed, 2))


def test_a_devices_name_ends_with_its_first_key_and_no_other() -> None:
    """Another key does not fit the name, nor this key another name."""
    device, other = Device("a"), Device("b")
    keys = device.keys(VAULT)
    assert claims.is_first_key(keys)
    assert not claims.is_first_key(msgspec.structs.replace(keys, ed25519=other.signer.ed25519_public))
    assert not claims.is_first_key(msgspec.structs.replace(keys, ml_dsa_65=other.signer.ml_dsa_65_public))
    assert not claims.is_first_key(msgspec.structs.replace(keys, device=other.device))
    assert not claims.is_first_key(msgspec.structs.replace(keys, device=claims.did_of(keys.device)))
