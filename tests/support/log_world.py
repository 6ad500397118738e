"""Logs to test with: devices with real keys, vaults founded on any chain, and hand-made batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from eventsourcing.dcb.api import DCBEvent

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.system import SystemClock
from walytis_vault.adapters.walytis.vault_log import VaultLog, found_vault
from walytis_vault.domain import claims
from walytis_vault.domain.batch import BATCH_VERSION, BatchBody, EventRecord, SignedBatch, seal_batch
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.events import (
    ANY_MEMBER,
    PRODUCT_EVENTS,
    ContentPublished,
    ContentRetracted,
    DeviceKeys,
    Event,
    EventTable,
    ForgettingProposed,
    KeyAnnounced,
    VaultFounded,
    to_dcb,
)
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.ports import Chain

GROUP = "did:test:group"


class Device:
    """A device of a member, with its signing keys."""

    def __init__(self, name: str, member: Device | None = None) -> None:
        self.signer = HybridSigner.generate()
        self.device = claims.device_name(f"did:test:{name}", self.signer.key_id)
        self.member: str = self.device if member is None else member.member

    def keys(self, vault_id: str) -> DeviceKeys:
        """What it announces in a vault."""
        keys = DeviceKeys(
            member=self.member,
            device=self.device,
            ed25519=self.signer.ed25519_public,
            ml_dsa_65=self.signer.ml_dsa_65_public,
            bus=b"b" * 32,
            peer_id="peer",
        )
        return claims.prove_possession(keys, vault_id, self.signer)

    def batch(
        self,
        vault_id: str,
        events: Sequence[Event],
        *,
        number: int,
        previous: bytes = b"",
        heads: Sequence[bytes] = (),
        signer: HybridSigner | None = None,
        time_ms: int = 0,
    ) -> SignedBatch:
        """A batch made by hand, with whatever the test wants to be wrong."""
        body = BatchBody(
            version=BATCH_VERSION,
            vault_id=vault_id,
            author=self.device,
            key_id=self.signer.key_id,
            number=number,
            previous=previous,
            heads=tuple(sorted(heads)),
            time_ms=time_ms,
            events=tuple(EventRecord(e.TOPIC, to_dcb(e).data) for e in events),
        )
        return seal_batch(body, signer or self.signer)


class OpenEventTable:
    """Any event type, tags carried in the payload: what the library's conformance suite needs."""

    def pack(self, event: DCBEvent) -> tuple[str, bytes]:
        """See `EventTable.pack`."""
        return event.type, msgspec.msgpack.encode((event.data, event.tags))

    def unpack(self, topic: str, payload: bytes) -> tuple[bytes, list[str]]:
        """See `EventTable.unpack`."""
        if topic in PRODUCT_EVENTS.topics:
            return PRODUCT_EVENTS.unpack(topic, payload)
        try:
            return msgspec.msgpack.decode(payload, type=tuple[bytes, list[str]])
        except msgspec.MsgspecError as e:
            raise UntrustedInputError(str(e)) from e


def founded(chain: Chain, device: Device, policy: str = ANY_MEMBER) -> BatchId:
    """Found a vault of one member on a chain; return the root."""
    return found_vault(
        chain,
        device.signer,
        VaultFounded(founder=device.member, group=GROUP, removal_policy=policy),
        KeyAnnounced(keys=device.keys(chain.chain_id)),
        SystemClock(),
    )


def open_log(
    folder: Path, chain: Chain, device: Device, root: BatchId, *, table: EventTable = PRODUCT_EVENTS
) -> VaultLog:
    """Open the log of a device in a folder; not started."""
    folder.mkdir(parents=True, exist_ok=True)
    return VaultLog(
        Database(folder / "log.sqlite"),
        chain,
        device.signer,
        HybridVerifier(),
        device=device.device,
        root=root,
        clock=SystemClock(),
        table=table,
    )


def note(number: int) -> ContentRetracted:
    """A small valid event that differs by its number."""
    return ContentRetracted(content_id=number.to_bytes(16, "big"))


def publication(
    vault_id: str, author: str, *, nonce: bytes, revises: bytes | None = None, expires_ms: int | None = None
) -> ContentPublished:
    """A publication under an id that its author can give."""
    return ContentPublished(
        content_id=claims.content_id_of(vault_id, author, nonce, revises=revises, expires_ms=expires_ms),
        nonce=nonce,
        root=hashlib.sha256(nonce).digest(),
        padded_length=1000,
        header=bytes(56),
        descriptor=b"sealed",
        revises=revises,
        expires_ms=expires_ms,
    )


def proposal(
    vault_id: str, proposer: str, contents: Sequence[bytes], electorate: Sequence[str], *, nonce: bytes = bytes(16)
) -> ForgettingProposed:
    """A proposal under an id that its proposer can give."""
    asked, dids = tuple(contents), tuple(sorted(electorate))
    ballot_id = claims.ballot_id_of(vault_id, proposer, nonce, asked, dids)
    return ForgettingProposed(ballot_id=ballot_id, nonce=nonce, contents=asked, electorate=dids)
