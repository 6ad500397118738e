"""Storms of frames: good messages of the bus with damage of every kind, and plain noise."""

from __future__ import annotations

import random
from collections.abc import Iterator

from walytis_vault.bus import calls, protocol
from walytis_vault.bus.messages import PublishOptions
from walytis_vault.bus.protocol import Kind, pack

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


def storm(chance: random.Random, count: int, seeds: list[list[bytes | memoryview]] = SEEDS) -> Iterator[list[bytes]]:
    """Messages: good ones with bytes changed, cut, doubled or inserted, parts added and lost, and plain noise."""
    for _ in range(count):
        if chance.random() < 0.1:
            yield [chance.randbytes(chance.randrange(64)) for _ in range(chance.randrange(5))]
            continue
        parts = [bytearray(part) for part in chance.choice(seeds)]
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
