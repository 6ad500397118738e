"""docs/bus-protocol.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walytis_vault.bus import calls, protocol
from walytis_vault.bus.protocol import BusLimits, Failure, Kind, pack
from walytis_vault.bus.sealing import Seal
from walytis_vault.domain.errors import ERRORS_BY_CODE

DOCUMENT = (Path(__file__).parents[2] / "docs" / "bus-protocol.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_version() -> None:
    """The title names the version that is spoken."""
    assert DOCUMENT.startswith(f"# The bus protocol, version {protocol.VERSION}\n")


def test_kinds() -> None:
    """Every kind is listed with its number and direction, and no other."""
    listed = {row[1]: (int(row[0], 16), row[2]) for row in table("Messages")}
    assert listed == {k.name: (k.value, "client" if k < Kind.REPLY else "node") for k in Kind}
    with_data = {row[1] for row in table("Messages") if row[4]}
    assert with_data == {k.name for k in protocol.WITH_DATA}


def test_calls() -> None:
    """Every call is listed with its verb and its fields."""
    listed = {row[0]: (row[1], tuple(re.findall(r"`(\w+)`", row[2]))) for row in table("Calls")}
    known = {}
    for call in get_args(calls.AnyCall):
        known[call.__struct_config__.tag] = (call.VERB, call.__struct_fields__)
    assert listed == known


def test_error_codes() -> None:
    """Every code that may travel is listed."""
    assert [row[0] for row in table("Errors")] == sorted({*ERRORS_BY_CODE, protocol.STREAM_GONE})


def test_limits() -> None:
    """Every limit is listed with its value."""
    listed = {row[0]: row[1] for row in table("Limits")}
    assert listed == {name: str(value) for name, value in msgspec.structs.asdict(BusLimits()).items()}


def test_sealing() -> None:
    """Nonces, associated data and proof are as the document says."""
    key, stream_id = bytes(range(32)), bytes(range(16))
    seal, cipher = Seal(key, stream_id), AESGCM(key)
    assert seal.seal(5, b"data") == cipher.encrypt(bytes(11) + b"\x05", b"data", stream_id)
    assert seal.proof() == cipher.encrypt(bytes(4) + b"\xff" * 8, b"", stream_id)
    assert "00 00 00 00 ff ff ff ff ff ff ff ff" in DOCUMENT


def test_examples() -> None:
    """The hexadecimal examples are what the code makes."""
    block = DOCUMENT.split("as hexadecimal parts:\n\n```\n")[1].split("\n```")[0]
    shown = [[bytes.fromhex(part) for part in line.split("|")] for line in block.splitlines()]
    message_id = bytes(range(16))
    assert shown == [
        pack(Kind.REQUEST, message_id, calls.StatusCall()),
        pack(Kind.ERROR, message_id, Failure(code="protocol-version", message="more")),
    ]
