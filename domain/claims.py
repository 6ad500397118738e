"""Ids and names that commit to whose they are, so that nobody can claim another's before it, with however early causes.

A member may sign a batch onto any past that it knew: "the first one counts" would let it take over what came later.
So an id is the hash of its owner's name and a random nonce, and a device's name ends with its first key. The log
refuses what does not fit. Nothing here is a secret, or a hash of one. Format: docs/wire-format.md, "Names and ids".
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.events import ContentPublished, DeviceKeys, ForgettingProposed
from walytis_vault.domain.ids import ID_BYTES, BallotId, ContentId, KeyId
from walytis_vault.domain.ports import Signer, Verifier

CONTENT_LABEL: Final = b"\xffwalytis-vault/content-id/v1\x00"
BALLOT_LABEL: Final = b"\xffwalytis-vault/ballot-id/v1\x00"
KEYS_LABEL: Final = b"\xffwalytis-vault/device-keys/v1\x00"
_FINGERPRINT_BYTES: Final = 16


def content_id_of(
    vault_id: str, author: str, nonce: bytes, *, revises: bytes | None = None, expires_ms: int | None = None
) -> ContentId:
    """The id of a content: it cannot be published by another, nor with other terms.

    Args:
        author: member DID.
        nonce: 16 random bytes.
        revises, expires_ms: as in `ContentPublished`.
    """
    expiry = b"" if expires_ms is None else expires_ms.to_bytes(8, "big")
    return ContentId(_digest(CONTENT_LABEL, [vault_id.encode(), author.encode(), nonce, revises or b"", expiry]))


def ballot_id_of(
    vault_id: str, proposer: str, nonce: bytes, contents: Sequence[bytes], electorate: Sequence[str]
) -> BallotId:
    """The id of a ballot: whoever consents to it consents to these contents, asked by and of these members."""
    parts = [vault_id.encode(), proposer.encode(), nonce, b"".join(contents), *(did.encode() for did in electorate)]
    return BallotId(_digest(BALLOT_LABEL, parts))


def check_content(vault_id: str, author: str, event: ContentPublished) -> None:
    """Raises UntrustedInputError unless the content's id is this author's."""
    made = content_id_of(vault_id, author, event.nonce, revises=event.revises, expires_ms=event.expires_ms)
    if made != event.content_id:
        raise UntrustedInputError("the content's id is not one that its author can give")


def check_ballot(vault_id: str, proposer: str, event: ForgettingProposed) -> None:
    """Raises UntrustedInputError unless the ballot's id is this proposer's, for these contents and this electorate."""
    if ballot_id_of(vault_id, proposer, event.nonce, event.contents, event.electorate) != event.ballot_id:
        raise UntrustedInputError("the ballot's id is not one that its proposer can give to this question")


def device_name(did: str, key_id: KeyId) -> str:
    """How the log names a device, and the member whose first device it is: the DID, `#`, its first key's fingerprint.

    Args:
        did: the device's own DID, without a fragment.
        key_id: id of its first signing keys.
    """
    fingerprint = base64.b32encode(key_id[:_FINGERPRINT_BYTES]).decode().rstrip("=").lower()
    return f"{did}#{fingerprint}"


def did_of(name: str) -> str:
    """The DID in a device's name."""
    return name.partition("#")[0]


def is_first_key(keys: DeviceKeys) -> bool:
    """Whether the device's name ends with these very keys."""
    return keys.device == device_name(did_of(keys.device), key_id_of_device(keys))


def prove_possession(keys: DeviceKeys, vault_id: str, signer: Signer) -> DeviceKeys:
    """The keys with a statement, signed by themselves, of whose they are: nobody can announce another's as its own."""
    return msgspec.structs.replace(keys, proof=signer.sign(_statement(keys, vault_id)))


def proves_possession(keys: DeviceKeys, vault_id: str, verifier: Verifier) -> bool:
    """Whether the owner of the signing keys agrees to everything that the announcement says."""
    return verifier.verify(
        ed25519=keys.ed25519,
        ml_dsa_65=keys.ml_dsa_65,
        signature=keys.proof,
        message=_statement(keys, vault_id),
    )


def _statement(keys: DeviceKeys, vault_id: str) -> bytes:
    texts = (vault_id, keys.member, keys.device, keys.peer_id)
    return KEYS_LABEL + _framed([*(t.encode() for t in texts), keys.ed25519, keys.ml_dsa_65, keys.bus])


def _digest(label: bytes, parts: Iterable[bytes]) -> bytes:
    return hashlib.sha256(label + _framed(parts)).digest()[:ID_BYTES]


def _framed(parts: Iterable[bytes]) -> bytes:
    """Each part behind its length in four bytes, so that no two lists give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
