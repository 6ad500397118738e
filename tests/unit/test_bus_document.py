"""docs/bus-protocol.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import NODEFAULT, inspect
from msgspec.json import encode

from walytis_vault.bus import calls, protocol
from walytis_vault.bus.messages import Change, PublishOptions
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


def kind_of(t: Any) -> str:
    """A type as the document writes it."""
    match t:
        case inspect.IntType():
            return f"integer {number(t.ge, -(2**63))} to {number(t.le, 2**64 - 1)}"
        case inspect.FloatType():
            return "number" if t.gt is None else f"number above {t.gt:g}, to {t.le:g}"
        case inspect.StrType():
            if t.pattern is not None:
                return "32 hex digits"
            return f"text of {t.min_length or 0} to {t.max_length}" if t.max_length else "text"
        case inspect.BytesType():
            return f"bytes, to {t.max_length}" if t.max_length else "bytes"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.UnionType():
            return ", or ".join(kind_of(one) for one in t.types)
        case inspect.VarTupleType():
            return f"array of {t.min_length or 0} to {t.max_length or 'any'}: {kind_of(t.item_type)}"
        case inspect.DictType():
            return f"map of 0 to {t.max_length or 'any'}: {kind_of(t.key_type)} = {kind_of(t.value_type)}"
        case inspect.AnyType():
            return "anything"
        case inspect.StructType():
            return f"map: {t.cls.__name__}"
    raise AssertionError(t)


def number(bound: int | None, default: int) -> str:
    """A bound; powers of two as such."""
    value = default if bound is None else bound
    for exponent in (53, 63, 64):
        for known, text in ((2**exponent, f"2^{exponent}"), (2**exponent - 1, f"2^{exponent}-1")):
            if abs(value) == known:
                return text if value > 0 else f"-{text}"
    return str(value)


def described() -> list[list[str]]:
    """Every field of every call and body: of what, name, type, and what it is when it is left out."""
    structs = [
        *get_args(calls.AnyCall),
        PublishOptions,
        *(protocol.Credit, protocol.Place, protocol.Length, protocol.Attach),
        *(Failure, protocol.Opened, protocol.Span, Change, protocol.Pong),
    ]
    rows = []
    for struct in structs:
        name = struct.__struct_config__.tag or struct.__name__
        info = inspect.type_info(struct)
        assert isinstance(info, inspect.StructType)
        for field in info.fields:
            default = "" if field.required else "{}" if field.default is NODEFAULT else encode(field.default).decode()
            rows.append([name, f"`{field.name}`", kind_of(field.type), default])
    return rows


def test_fields() -> None:
    """Every field is listed with its type, its range, and what it is when left out."""
    assert table("Fields") == described()


def test_what_to_do() -> None:
    """Each error says what it means and what to do."""
    assert [row[0] for row in table("Errors") if not row[1] or not row[2]] == []


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
