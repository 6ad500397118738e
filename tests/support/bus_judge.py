"""A second opinion on messages to the node, by the tables of docs/bus-protocol.md and not by the code under test."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec

DOCUMENT = (Path(__file__).parents[2] / "docs" / "bus-protocol.md").read_text()
BODIES = {"CREDIT": "Credit", "DATA": "Place", "END": "Length", "ATTACH": "Attach", "CANCEL": "", "PING": ""}
HEX = re.compile(r"[0-9a-f]{32}")


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


KINDS = {int(row[0], 16): row for row in table("Messages")}
CALLS = {row[0] for row in table("Calls")}
FIELDS: dict[str, dict[str, tuple[str, bool]]] = {}
for of, name, written, left_out in table("Fields"):
    FIELDS.setdefault(of, {})[name.strip("`")] = (written, bool(left_out))


def number(text: str) -> int:
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    power, _, less = text.partition("-")
    base, _, exponent = power.partition("^")
    value: int = int(base) ** int(exponent or 1) - int(less or 0)
    return sign * value


def fits(written: str, value: Any) -> bool:
    """Whether a value is of a type as the document writes it."""
    if written.startswith(("array of ", "map of ")):
        head, _, rest = written.partition(": ")
        least, most = re.findall(r"\d+|any", head)
        if not least.isdigit() or not int(least) <= len(value if isinstance(value, list | dict) else "") <= (
            math.inf if most == "any" else int(most)
        ):
            return False
        if written.startswith("array"):
            return isinstance(value, list) and all(fits(rest, one) for one in value)
        of_key, _, of_value = rest.partition(" = ")
        return isinstance(value, dict) and all(fits(of_key, k) and any_fits(of_value, v) for k, v in value.items())
    if written.startswith("integer "):
        least, most = written.removeprefix("integer ").split(" to ")
        return type(value) is int and number(least) <= value <= number(most)
    if written.startswith("text"):
        bounds = re.fullmatch(r"text of (\d+) to (\d+)", written)
        least, most = bounds.groups() if bounds else ("0", "1000000")
        return isinstance(value, str) and int(least) <= len(value) <= int(most)
    if written.startswith("number above 0, to "):
        return type(value) in (int, float) and 0 < value <= float(written.removeprefix("number above 0, to "))
    if written.startswith("bytes"):
        return isinstance(value, bytes) and len(value) <= int(written.removeprefix("bytes, to "))
    if written.startswith("map: "):
        return isinstance(value, dict) and has_fields(written.removeprefix("map: "), value)
    return {
        "number": type(value) is float and math.isfinite(value),
        "true or false": isinstance(value, bool),
        "null": value is None,
        "32 hex digits": isinstance(value, str) and HEX.fullmatch(value) is not None,
    }[written]


def any_fits(written: str, value: Any) -> bool:
    """The same where the document names several types."""
    if written.startswith("map of "):
        return fits(written, value)
    return any(fits(one, value) for one in written.split(", or "))


def has_fields(of: str, body: dict[Any, Any]) -> bool:
    """Whether a map has the fields that the document lists, and no other."""
    fields = FIELDS.get(of, {})
    needed = {name for name, (_, optional) in fields.items() if not optional}
    if not needed <= set(body) or not all(isinstance(name, str) for name in body):
        return False
    return all(n in fields and any_fits(fields[n][0], v) for n, v in body.items())


def accepts(parts: list[bytes], body_cap: int, data_cap: int) -> bool | None:
    """Whether the document lets a node take a message; None where its MessagePack could be read in two ways."""
    if not 2 <= len(parts) <= 3 or len(parts[0]) != 21 or parts[0][:4] != b"WVB\x01":
        return False
    row = KINDS.get(parts[0][4])
    if row is None or row[2] != "client" or len(parts[1]) > body_cap:
        return False
    if len(parts) == 3 and (not row[4] or len(parts[2]) > data_cap):
        return False
    try:
        body = msgspec.msgpack.decode(parts[1])
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError, TypeError):
        return False
    if not isinstance(body, dict):
        return False
    if len(msgspec.msgpack.encode(body)) != len(parts[1]):
        return None
    if row[1] != "REQUEST":
        return has_fields(BODIES[row[1]], body)
    call = body.pop("call", None)
    return isinstance(call, str) and call in CALLS and has_fields(call, body)
