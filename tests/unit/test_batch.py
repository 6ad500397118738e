"""Hostile bytes for the log's decoders: they return, or raise our error; nothing else, and nothing is believed."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.log_world import Device, note
from walytis_vault.domain.batch import ENVELOPE_BYTES, BatchBody, EventRecord, decode_batch, encode_body
from walytis_vault.domain.errors import MisuseError, UntrustedInputError
from walytis_vault.domain.events import (
    PRODUCT_EVENTS,
    ClosedMapper,
    ContentPublished,
    ForgettingProposed,
    KeyAnnounced,
    to_dcb,
)
from walytis_vault.domain.limits import LIMITS

DEVICE = Device("a")
BATCH = DEVICE.batch("QmVault", [note(1), KeyAnnounced(keys=DEVICE.keys("QmVault"))], number=1, heads=[b"h" * 32])


def test_a_batch_comes_back_as_it_was() -> None:
    """Encoding and decoding are inverse, and the id covers the bytes as they are."""
    decoded = decode_batch(BATCH.envelope())
    assert decoded == BATCH
    assert decoded.batch_id == BATCH.batch_id


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_mutation_of_a_batch_is_our_error_or_another_batch(data: st.DataObject) -> None:
    """Flipped, cut, doubled and inserted bytes never raise anything but our error."""
    raw = bytearray(BATCH.envelope())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "utf8"])):
            case "flip":
                raw[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del raw[at:]
                raw += b"\1"
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=40))
            case _:
                raw[at : at + 2] = b"\xa2\xff"
    with contextlib.suppress(UntrustedInputError):
        decode_batch(bytes(raw))


@given(st.sampled_from(sorted(PRODUCT_EVENTS.topics)), st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_payload_is_an_event_or_our_error(topic: str, payload: bytes) -> None:
    """Random payloads under every topic never raise anything but our error."""
    with contextlib.suppress(UntrustedInputError):
        PRODUCT_EVENTS.decode(topic, payload)


@pytest.mark.parametrize("text", [b"\xa2\xff\xfe", b"\xd9\x02\xc3\x28"])
def test_broken_unicode_is_our_error(text: bytes) -> None:
    """Invalid UTF-8 inside a text is refused like any other malformed bytes."""
    with pytest.raises(UntrustedInputError):
        PRODUCT_EVENTS.decode("vault-founded/1", b"\x82\xa7founder" + text + b"\xa5group\xa1g")
    with pytest.raises(UntrustedInputError):
        decode_batch(bytes([1]) + bytes(ENVELOPE_BYTES - 1) + b"\x99\x01" + text)


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 1, "previous": b"p" * 32},
        {"number": 2, "previous": b""},
        {"number": 2, "previous": b"short"},
        {"heads": (b"b" * 32, b"a" * 32)},
        {"heads": (b"a" * 32, b"a" * 32)},
        {"number": 2, "previous": b"h" * 32},
        {"events": ()},
        {"events": (EventRecord("x", bytes(LIMITS.event_payload + 1)),)},
        {"version": 0},
        {"number": 0},
    ],
    ids=str,
)
def test_a_body_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    """Well-formed bodies with impossible fields are refused before any signature is looked at."""
    body = encode_body(msgspec.structs.replace(BATCH.body, **changes))
    with pytest.raises(UntrustedInputError):
        decode_batch(bytes([1]) + BATCH.signature + body)


def test_bodies_are_strict_and_payloads_are_tolerant() -> None:
    """One field too many refuses a body; an event with a field of a later version is read."""
    fields = list(msgspec.structs.astuple(BATCH.body))
    fields[8] = [msgspec.structs.astuple(e) for e in BATCH.body.events]
    with pytest.raises(UntrustedInputError):
        decode_batch(bytes([1]) + BATCH.signature + msgspec.msgpack.encode([*fields, "more"]))
    later = msgspec.msgpack.encode({"content_id": b"c" * 16, "since": "a later version"})
    assert PRODUCT_EVENTS.decode("content-retracted/1", later).tags() == [f"content:{(b'c' * 16).hex()}"]


def test_only_the_tags_that_follow_from_the_fields_are_taken() -> None:
    """Tags given by a caller must be the event's own."""
    event = to_dcb(note(1))
    event.tags = ["content:somebody-elses"]
    with pytest.raises(MisuseError):
        PRODUCT_EVENTS.pack(event)


def test_the_mapper_knows_only_our_events() -> None:
    """A topic that names a Python object is refused, not imported."""
    from eventsourcing.dcb.api import DCBEvent

    with pytest.raises(UntrustedInputError):
        ClosedMapper().to_domain_event(DCBEvent(type="os:system", data=b"\x80", tags=[]))


def test_every_event_keeps_within_one_batch() -> None:
    """The largest allowed proposal and publication fit into a batch body."""
    largest = ForgettingProposed(
        ballot_id=b"b" * 16,
        nonce=bytes(16),
        contents=tuple(n.to_bytes(16, "big") for n in range(LIMITS.ballot_contents)),
        electorate=("did:x",),
        reason=bytes(LIMITS.descriptor),
    )
    assert len(to_dcb(largest).data) < LIMITS.event_payload
    published = ContentPublished(
        content_id=b"c" * 16,
        nonce=bytes(16),
        root=b"r" * 32,
        padded_length=1,
        header=bytes(56),
        descriptor=bytes(LIMITS.descriptor),
    )
    assert isinstance(BATCH.body, BatchBody)
    assert len(to_dcb(published).data) < LIMITS.event_payload
