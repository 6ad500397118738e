"""Frames and calls: what is well-formed is taken, everything else is refused with our error and nothing else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from walytis_vault.bus import calls, protocol
from walytis_vault.bus.messages import PublishOptions
from walytis_vault.bus.protocol import Kind, decode, header, pack, split
from walytis_vault.domain.errors import (
    ERRORS_BY_CODE,
    ProtocolVersionError,
    UntrustedInputError,
    VaultError,
)

ID = bytes(range(16))
BODIES = [protocol.CREDIT, protocol.PLACE, protocol.LENGTH, protocol.NOTHING, protocol.FAILURE, protocol.OPENED]
BODIES += [protocol.SPAN, protocol.CHANGES, protocol.PONG, calls.CALL]
GOOD = [
    calls.StatusCall(),
    calls.QueryCall(view="catalogue", limit=10, filters={"label": "x", "n": 1, "f": 1.5, "b": True, "l": ("a",)}),
    calls.PublishCall(options=PublishOptions(name="n", labels=("l",)), inline=True, size=3),
    calls.OpenCall(content_id="ab" * 16, offset=1, limit=2, timeout_ms=3),
    calls.SubscribeCall(view="events", after=7, limit=256),
    calls.ForgetCall(contents=("ab" * 16,), reason="r"),
]


@pytest.mark.parametrize("call", GOOD)
def test_a_call_survives_the_wire(call: calls.AnyCall) -> None:
    """What is packed is what is split and decoded."""
    parts = pack(Kind.REQUEST, ID, call, b"data")
    message = split(parts, body_cap=1 << 17, data_cap=1 << 18)
    assert (message.kind, message.id, bytes(message.data)) == (Kind.REQUEST, ID, b"data")
    assert decode(calls.CALL, message.body) == call


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=5))
@example([header(Kind.REQUEST, ID), b"\xc7\xff"])
def test_any_parts_are_split_or_refused(parts: list[bytes]) -> None:
    """Whatever the parts are, split returns a message or raises an error of ours."""
    try:
        message = split(parts, body_cap=1024, data_cap=1024)
    except (UntrustedInputError, ProtocolVersionError):
        return
    assert len(message.id) == 16


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=256), st.sampled_from(BODIES))
def test_any_body_is_decoded_or_refused(body: bytes, decoder: msgspec.msgpack.Decoder[object]) -> None:
    """Whatever the bytes are, a body is decoded or refused with UntrustedInputError."""
    try:
        decode(decoder, body)
    except UntrustedInputError:
        return


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_a_damaged_call_is_refused_or_another_valid_call(call: calls.AnyCall, data: st.DataObject) -> None:
    """A call with changed, cut or added bytes is refused, or is a call within all limits."""
    body = bytearray(protocol.encode(call))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        taken = decode(calls.CALL, bytes(body))
    except UntrustedInputError:
        return
    assert decode(calls.CALL, protocol.encode(taken)) == taken


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """A body that is nested deeply is refused, not followed."""
    for opener in (b"\x91", b"\x81\xa1a"):
        with pytest.raises(UntrustedInputError):
            decode(calls.CALL, b"\x81\xa7filters" + opener * depth)


@pytest.mark.parametrize(
    "body",
    [
        {"call": "query", "view": "v", "limit": 0},
        {"call": "query", "view": "v", "limit": 10**6},
        {"call": "query", "view": "", "limit": 1},
        {"call": "query", "view": "v", "limit": 1, "filters": {str(n): 1 for n in range(17)}},
        {"call": "query", "view": "v", "limit": 1, "filters": {"a": {"b": 1}}},
        {"call": "open", "content_id": "AB" * 16, "timeout_ms": 1},
        {"call": "open", "content_id": "ab" * 16 + "\n", "timeout_ms": 1},
        {"call": "open", "content_id": "ab" * 16, "offset": -1, "timeout_ms": 1},
        {"call": "open", "content_id": "ab" * 16, "offset": 2**60, "timeout_ms": 1},
        {"call": "forget", "contents": []},
        {"call": "forget", "contents": ["ab" * 16] * 1025},
        {"call": "forget", "contents": ["ab" * 16], "reason": "r" * 5000},
        {"call": "publish", "inline": 1},
        {"call": "publish", "inline": True, "more": 1},
        {"call": "publish", "inline": True, "options": {"labels": ["l"] * 65}},
        {"call": "invite", "expires_s": -1},
        {"call": "remove", "did": ""},
        {"call": "Status"},
        {},
        [],
        None,
    ],
)
def test_calls_beyond_their_limits_are_refused(body: object) -> None:
    """Each limit of a call is checked when it is decoded."""
    with pytest.raises(UntrustedInputError):
        decode(calls.CALL, protocol.encode(body))


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    """Bodies and data over their caps, and data where none belongs, are refused by size alone."""
    for parts in (
        [header(Kind.REQUEST, ID), b"x" * 11],
        [header(Kind.REQUEST, ID), b"", b"x" * 21],
        [header(Kind.PING, ID), b"", b""],
    ):
        with pytest.raises(UntrustedInputError):
            split(parts, body_cap=10, data_cap=20)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_has_an_error_of_its_own(version: int) -> None:
    """A newer or older version is told apart from garbage."""
    with pytest.raises(ProtocolVersionError):
        split([b"WVB" + bytes([version]) + header(Kind.PING, ID)[4:], b"\x80"], body_cap=10, data_cap=10)


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
def test_errors_keep_their_class_over_the_wire(code: str) -> None:
    """A client raises the class that the node raised."""
    error = ERRORS_BY_CODE[code]("what to do")
    body = decode(protocol.FAILURE, protocol.encode(protocol.failure(error)))
    again = protocol.raised(body)
    assert (type(again), str(again)) == (type(error), "what to do")


def test_an_unknown_code_is_a_plain_error() -> None:
    """A code of a later version becomes VaultError."""
    assert type(protocol.raised(protocol.Failure(code="later", message="m"))) is VaultError
