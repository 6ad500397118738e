"""All traffic was recorded, even below the transport's encryption; after forgetting, no key on any disk opens it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from support.canaries import find_canaries
from support.disk_keys import keys_on_disk
from support.peer_nodes import eventually, found_and_join, meet, stop_all
from support.tapped_process import TAP_VARIABLE, Record, read_tap
from walytis_vault.adapters.crypto.content_cipher import ContentDecryptor, content_context
from walytis_vault.adapters.crypto.descriptor import open_descriptor
from walytis_vault.adapters.exchange.key_transfer import _SUITE, SEALED_BYTES, _info
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import decode_batch
from walytis_vault.domain.errors import UntrustedInputError, VaultError
from walytis_vault.domain.ids import ContentId, ContentKey
from walytis_vault.peers import protocol as p

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SMALL, LARGE = 20_000, (3 << 20) + 17


def test_recorded_traffic_and_all_keys_on_all_disks_open_nothing(tmp_path: Path) -> None:
    """Before forgetting the keys on each disk open the recorded ciphertext; afterwards none opens anything of it."""
    members = found_and_join(tmp_path, "a", "b")
    a, b = members
    try:
        vault_id, author = a.client.status().vault_id, a.did
        taps = [tmp_path / f"tap-{m.home.name}" for m in members]
        for member, tap in zip(members, taps, strict=True):
            member.stop()
            member.start_as("support.tapped_process", **{TAP_VARIABLE: str(tap)})
        meet(*members)
        secret, name = secrets.token_bytes(32), secrets.token_hex(16)
        data = [secret + secrets.token_bytes(size - 32) for size in (SMALL, LARGE)]
        ids = [a.client.publish(d, name=name).content_id for d in data]
        for content_id, plain in zip(ids, data, strict=True):
            eventually(lambda c=content_id: b.row(c), "the content is known")  # type: ignore[misc]
            assert b.client.request(content_id) == plain
        stop_all(members)
        records = [record for tap in taps for record in read_tap(tap)]
        recorded = b"".join(part for record in records for part in record.parts)
        assert secret not in recorded
        assert name.encode() not in recorded
        published = {bytes.fromhex(i): event for i in ids for event in [_event(records, bytes.fromhex(i))]}
        contexts = {i: content_context(vault_id, author, ContentId(i)) for i in published}
        for event in published.values():
            assert event.header in recorded, "the ciphertext was recorded"
        assert len(recorded) > LARGE
        keys: dict[bytes, bytes] = {}
        for number, member in enumerate(members):
            candidates = keys_on_disk(member.home, tmp_path / f"before-{number}")
            for wanted, event in published.items():
                opening = [k for k in candidates if _opens(k, contexts[wanted], event)]
                assert len(opening) == 1, "before the forgetting, the right key on the disk is found, and opens"
                keys[wanted] = opening[0]
                assert _opens_descriptor(opening[0], wanted, event), "and so does it open the name"
        granted = _grants(records)
        assert {key for _, _, key in granted} >= set(keys.values()), "the recorded key grants open with their own keys"
        for member in members:
            member.start()
        meet(*members)
        ballot_id = b.client.forget(*ids).ballot_id
        eventually(lambda: a.ballot(ballot_id), "the ballot is seen")
        a.client.consent(ballot_id)
        for member in members:
            eventually(lambda m=member: len(m.ballot(ballot_id).receipts) == 2, "both have erased")  # type: ignore[misc]
        for restarted in range(2):
            stop_all(members)
            for number, member in enumerate(members):
                candidates = keys_on_disk(member.home, tmp_path / f"after-{restarted}-{number}")
                assert len(candidates) > 1000
                for wanted, event in published.items():
                    assert not [k for k in candidates if _opens(k, contexts[wanted], event)]
                canaries = {"key": keys[bytes.fromhex(ids[0])], "other key": keys[bytes.fromhex(ids[1])]}
                for count, (ml_kem, x25519, _) in enumerate(granted):
                    canaries |= {f"kem {count}": ml_kem[:32], f"rest {count}": ml_kem[32:], f"x {count}": x25519}
                canaries |= {"content": secret, "name": name.encode()}
                assert find_canaries(member.home, canaries) == []
            for member in members:
                member.start()
    finally:
        stop_all(members)


def _event(records: Sequence[Record], content_id: bytes) -> ev.ContentPublished:
    """What the recorded batches say about a content."""
    for record in records:
        for part in record.parts[2:] if record.kind == "message" else ():
            try:
                batch = decode_batch(part)
            except UntrustedInputError:
                continue
            for entry in batch.body.events:
                if entry.topic == ev.ContentPublished.TOPIC:
                    event = ev.PRODUCT_EVENTS.decode(entry.topic, entry.payload)
                    if isinstance(event, ev.ContentPublished) and event.content_id == content_id:
                        return event
    raise AssertionError("the publication was not recorded")


def _grants(records: Sequence[Record]) -> list[tuple[bytes, bytes, bytes]]:
    """(ML-KEM seed, X25519 key, content key) of each recorded key grant, by the private keys of the control."""
    sealed = []
    for record in records:
        if record.kind == "message":
            try:
                reply = msgspec.msgpack.decode(record.parts[1], type=p.Fetched)
            except msgspec.MsgspecError:
                continue
            if len(reply.sealed_key) == SEALED_BYTES:
                sealed.append(reply.sealed_key)
    found = []
    for ml_kem, x25519, statement in (r.parts for r in records if r.kind == "private"):
        private = hpke.MLKEM768X25519PrivateKey(
            MLKEM768PrivateKey.from_seed_bytes(ml_kem), X25519PrivateKey.from_private_bytes(x25519)
        )
        for grant in sealed:
            try:
                found.append((ml_kem, x25519, _SUITE.decrypt(grant, private, _info(statement))))
            except (InvalidTag, ValueError):
                continue
    return found


def _opens(key: bytes, context: bytes, event: ev.ContentPublished) -> bool:
    """Whether a key is the one that the recorded ciphertext's header commits to."""
    try:
        ContentDecryptor(key, context).update(event.header)
    except VaultError:
        return False
    return True


def _opens_descriptor(key: bytes, content_id: bytes, event: ev.ContentPublished) -> bool:
    """Whether a key opens the name on the log."""
    try:
        open_descriptor(ContentKey(key), ContentId(content_id), event.descriptor)
    except VaultError:
        return False
    return True
