"""The committed messages of the bus, byte for byte: what we send, what we understand, and what we refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from vectors import make_bus_frames
from walytis_vault.bus import calls, protocol
from walytis_vault.bus.protocol import Kind, decode, pack, split
from walytis_vault.bus.sealing import Seal
from walytis_vault.domain.errors import VaultError

FRAMES = json.loads((Path(__file__).parents[1] / "vectors" / "bus_frames.json").read_text())
BODIES: dict[Kind, msgspec.msgpack.Decoder[Any]] = {
    Kind.REQUEST: calls.CALL,
    Kind.CREDIT: protocol.CREDIT,
    Kind.DATA: protocol.PLACE,
    Kind.END: protocol.LENGTH,
    Kind.CANCEL: protocol.NOTHING,
    Kind.PING: protocol.NOTHING,
    Kind.ATTACH: protocol.ATTACH,
    Kind.REPLY: msgspec.msgpack.Decoder(),
    Kind.ERROR: protocol.FAILURE,
    Kind.OPENED: protocol.OPENED,
    Kind.GRANT: protocol.CREDIT,
    Kind.CHUNK: protocol.PLACE,
    Kind.DONE: protocol.LENGTH,
    Kind.CHANGES: protocol.SPAN,
    Kind.PONG: protocol.PONG,
}


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def test_the_file_is_what_its_generator_makes() -> None:
    """The committed file is a fresh one, and holds every kind and every call."""
    assert make_bus_frames.FILE.read_text() == make_bus_frames.text()
    assert {m["kind"] for m in FRAMES["messages"]} == {kind.name for kind in Kind}
    tags = {call.__struct_config__.tag for call in get_args(calls.AnyCall)}
    assert {m["body"]["call"] for m in FRAMES["messages"] if m["kind"] == "REQUEST"} == tags


@pytest.mark.parametrize("vector", named(FRAMES["messages"]))
def test_messages(vector: dict[str, Any]) -> None:
    """Each message is understood, and the code makes the very same bytes of what it understood."""
    parts = [bytes.fromhex(part) for part in vector["parts"]]
    message = split(parts, body_cap=1 << 10, data_cap=1 << 10)
    assert (message.kind.name, message.id.hex()) == (vector["kind"], FRAMES["id"])
    body = decode(BODIES[message.kind], message.body)
    assert pack(message.kind, message.id, body, message.data or None) == parts
    if message.kind is Kind.CHANGES:
        (change,) = decode(protocol.CHANGES, bytes(message.data))
        assert (change.position, protocol.encode([change])) == (8, parts[2])


def test_seals() -> None:
    """Sealed data and the proof of ATTACH open under the file's key."""
    seal = Seal(bytes.fromhex(FRAMES["key"]), bytes.fromhex(FRAMES["id"]))
    by_name = {m["name"]: m for m in FRAMES["messages"]}
    data = by_name["sealed data, on the bulk socket"]
    assert seal.open(data["body"]["offset"], bytes.fromhex(data["parts"][2])) == b"hello"
    assert seal.proves(bytes.fromhex(by_name["attach"]["body"]["proof"]))


@pytest.mark.parametrize("vector", named(FRAMES["refused"]))
def test_refusals(vector: dict[str, Any]) -> None:
    """Each is refused with the error that the file names."""
    parts = [bytes.fromhex(part) for part in vector["parts"]]
    with pytest.raises(VaultError) as refused:
        decode(BODIES[(message := split(parts, body_cap=1 << 10, data_cap=1 << 10)).kind], message.body)
    assert refused.value.code == vector["code"]
