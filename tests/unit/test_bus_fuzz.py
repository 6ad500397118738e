"""The decoders of the bus under a storm of frames: nothing crashes, and nothing that is nonsense is taken."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from walytis_vault.bus import calls, protocol
from walytis_vault.bus.messages import PublishOptions
from walytis_vault.bus.protocol import Kind, decode, pack, split
from walytis_vault.domain.errors import ProtocolVersionError, UntrustedInputError

BODY_CAP, DATA_CAP = 128 << 10, 256 << 10
ID = bytes(range(16))
SEEDS: list[list[bytes | memoryview]] = [
    pack(Kind.REQUEST, ID, calls.StatusCall()),
    pack(Kind.REQUEST, ID, calls.QueryCall(view="catalogue", limit=10, filters={"label": "x", "l": ("a",), "n": 1})),
    pack(Kind.REQUEST, ID, calls.PublishCall(options=PublishOptions(name="n", labels=("l",)), inline=True), b"data"),
    pack(Kind.REQUEST, ID, calls.OpenCall(content_id="ab" * 16, offset=1, limit=2, timeout_ms=3)),
    pack(Kind.REQUEST, ID, calls.SubscribeCall(view="events", after=7, limit=256, filters={"author": "did:x"})),
    pack(Kind.REQUEST, ID, calls.ForgetCall(contents=("ab" * 16,), reason="r")),
    pack(Kind.REQUEST, ID, calls.WaitForCall(position=1, timeout_ms=2)),
    pack(Kind.CREDIT, ID, protocol.Credit(received=1, limit=2)),
    pack(Kind.DATA, ID, protocol.Place(offset=5), b"data"),
    pack(Kind.END, ID, protocol.Length(length=5)),
    pack(Kind.PING, ID, protocol.Nothing()),
    pack(Kind.ATTACH, ID, protocol.Attach(proof=bytes(16))),
]
BODIES: dict[Kind, msgspec.msgpack.Decoder[Any]] = {
    Kind.REQUEST: calls.CALL,
    Kind.CREDIT: protocol.CREDIT,
    Kind.DATA: protocol.PLACE,
    Kind.END: protocol.LENGTH,
    Kind.CANCEL: protocol.NOTHING,
    Kind.PING: protocol.NOTHING,
    Kind.ATTACH: protocol.ATTACH,
}


def storm(chance: random.Random, count: int) -> Iterator[list[bytes]]:
    """Messages: good ones with bytes changed, cut, doubled or inserted, parts added and lost, and plain noise."""
    for _ in range(count):
        if chance.random() < 0.1:
            yield [chance.randbytes(chance.randrange(64)) for _ in range(chance.randrange(5))]
            continue
        parts = [bytearray(part) for part in chance.choice(SEEDS)]
        for _ in range(chance.randrange(4)):
            part = chance.choice(parts)
            at = chance.randrange(len(part) + 1)
            match chance.randrange(6):
                case 0 if at < len(part):
                    part[at] = chance.randrange(256)
                case 1:
                    del part[at:]
                case 2:
                    part[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 3:
                    part[at:at] = part[: chance.randrange(len(part) + 1)]
                case 4:
                    parts.append(bytearray(chance.randbytes(chance.randrange(9))))
                case _ if len(parts) > 1:
                    parts.pop(chance.randrange(len(parts)))
        yield [bytes(part) for part in parts]


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_storm_of_frames(count: int) -> None:
    """Each message is refused with our error, or is a message within all limits that says the same when said again."""
    taken = refused = 0
    for parts in storm(random.Random(count), count):
        try:
            message = split(parts, body_cap=BODY_CAP, data_cap=DATA_CAP)
            decoder = BODIES.get(message.kind)
            if decoder is None:
                refused += 1  # kinds that only a node sends: the server answers them with an error
                continue
            body = decode(decoder, message.body)
        except (UntrustedInputError, ProtocolVersionError):
            refused += 1
            continue
        taken += 1
        assert parts[0] == protocol.header(message.kind, message.id)
        assert decode(decoder, protocol.encode(body)) == body
        assert (len(parts) == 3) <= (message.kind in protocol.WITH_DATA)
        if isinstance(body, calls.QueryCall):
            assert 1 <= body.limit <= 10_000
            assert len(body.filters) <= 16
        if isinstance(body, calls.OpenCall):
            assert len(bytes.fromhex(body.content_id)) == 16
    assert taken > count // 20, "the control: undamaged messages are among them"
    assert refused > count // 4
