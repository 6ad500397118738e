"""The decoders of the bus under a storm of frames: nothing crashes, and nothing that is nonsense is taken."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from support import bus_judge
from support.bus_storm import ID, storm
from walytis_vault.bus import calls, protocol
from walytis_vault.bus.messages import Change
from walytis_vault.bus.protocol import Kind, decode, pack, split
from walytis_vault.domain.errors import ProtocolVersionError, UntrustedInputError

BODY_CAP, DATA_CAP = 128 << 10, 256 << 10
BODIES: dict[Kind, msgspec.msgpack.Decoder[Any]] = {
    Kind.REQUEST: calls.CALL,
    Kind.CREDIT: protocol.CREDIT,
    Kind.DATA: protocol.PLACE,
    Kind.END: protocol.LENGTH,
    Kind.CANCEL: protocol.NOTHING,
    Kind.PING: protocol.NOTHING,
    Kind.ATTACH: protocol.ATTACH,
}


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_storm_of_frames(count: int) -> None:
    """Each message is taken or refused with our error, as the document says, and says the same when said again."""
    taken = refused = 0
    for parts in storm(random.Random(count), count):
        judged = bus_judge.accepts(parts, BODY_CAP, DATA_CAP)
        try:
            message = split(parts, body_cap=BODY_CAP, data_cap=DATA_CAP)
            decoder = BODIES.get(message.kind)
            if decoder is None:
                refused += 1  # kinds that only a node sends: the server answers them with an error
                continue
            body = decode(decoder, message.body)
        except (UntrustedInputError, ProtocolVersionError):
            refused += 1
            assert judged is not True, parts
            continue
        taken += 1
        assert judged is not False, parts
        assert parts[0] == protocol.header(message.kind, message.id)
        assert decode(decoder, protocol.encode(body)) == body
    assert taken > count // 20, "the control: undamaged messages are among them"
    assert refused > count // 4


FROM_NODE: dict[Kind, tuple[msgspec.msgpack.Decoder[Any], Any]] = {
    Kind.ERROR: (protocol.FAILURE, protocol.Failure(code="busy", message="wait")),
    Kind.OPENED: (protocol.OPENED, protocol.Opened(length=5, content_id="ab" * 16, limit=7, bulk_key=bytes(32))),
    Kind.GRANT: (protocol.CREDIT, protocol.Credit(received=1, limit=2)),
    Kind.CHANGES: (protocol.SPAN, protocol.Span(sent=1, count=2, position=3)),
    Kind.PONG: (protocol.PONG, protocol.Pong(sent=1, limit=2, position=3, node="ab")),
    Kind.REPLY: (protocol.CHANGES, (Change(position=1, type="t", author="a", time="", ids=("i",), row={"a": None}),)),
}


@pytest.mark.parametrize("kind", FROM_NODE, ids=lambda kind: kind.name)
def test_a_storm_over_a_client(kind: Kind) -> None:
    """What a node sends is refused with our error too, or is within its ranges; numbers are never negative."""
    decoder, good = FROM_NODE[kind]
    taken = refused = 0
    for parts in storm(random.Random(kind), 20_000, [pack(kind, ID, good)]):
        try:
            message = split(parts, body_cap=BODY_CAP, data_cap=DATA_CAP)
            body = decode(decoder, message.body)
        except (UntrustedInputError, ProtocolVersionError):
            refused += 1
            continue
        taken += 1
        assert decode(decoder, protocol.encode(body)) == body
        if kind is not Kind.REPLY:
            fields = msgspec.structs.asdict(body).values()
            assert all(0 <= value <= 2**53 for value in fields if isinstance(value, int))
    assert taken > 500
    assert refused > 5000
