"""Makes bus_frames.json: every kind of message and every call of the bus, byte for byte, and some that are refused.

Written from docs/bus-protocol.md with a plain MessagePack encoder, not with the code under test. Run it from the
project's folder: `python tests/vectors/make_bus_frames.py` (a test compares its output).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FILE = Path(__file__).parent / "bus_frames.json"
ID = bytes(range(16))
KEY = bytes(range(32))
CONTENT, BALLOT = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"
NODE = ("REPLY", "ERROR", "OPENED", "GRANT", "CHUNK", "DONE", "CHANGES", "PONG")
KINDS = {"REQUEST": 1, "CREDIT": 2, "DATA": 3, "END": 4, "CANCEL": 5, "PING": 6, "ATTACH": 7} | {
    name: 0x81 + number for number, name in enumerate(NODE)
}
OPTIONS = {
    "name": "letter.txt",
    "media_type": "text/plain",
    "labels": ["a", "b"],
    "note": None,
    "revises": None,
    "expires_ms": 1_900_000_000_000,
}
PLAIN = dict.fromkeys(OPTIONS) | {"labels": []}
CALLS: list[dict[str, Any]] = [
    {"call": "status"},
    {
        "call": "query",
        "view": "catalogue",
        "limit": 500,
        "cursor": None,
        "filters": {"label": "a", "size": 7, "ratio": 0.5, "mine": True, "labels": ["a", "b"], "none": None},
        "as_of": None,
    },
    {"call": "query", "view": "ballots", "limit": 1, "cursor": "c", "filters": {}, "as_of": 7},
    {"call": "query", "view": "ballots", "limit": 1, "cursor": None, "filters": {}, "as_of": "2026-01-01T00:00:00Z"},
    {"call": "wait_for", "position": 7, "timeout_ms": 30_000},
    {"call": "open", "content_id": CONTENT, "offset": 0, "limit": 8 << 20, "timeout_ms": 30_000, "bulk": False},
    {"call": "subscribe", "view": "events", "after": 0, "until": None, "filters": {"author": "did:x"}, "limit": 256},
    {"call": "publish", "options": OPTIONS, "inline": True, "size": 5, "bulk": False},
    {"call": "publish", "options": PLAIN, "inline": False, "size": None, "bulk": True},
    {"call": "retract", "content_id": CONTENT},
    {"call": "restore", "content_id": CONTENT},
    {"call": "forget", "contents": [CONTENT], "reason": "asked for"},
    {"call": "consent", "ballot_id": BALLOT},
    {"call": "refuse", "ballot_id": BALLOT, "reason": ""},
    {"call": "withdraw", "ballot_id": BALLOT},
    {"call": "drop", "contents": [CONTENT], "force": False},
    {"call": "lock"},
    {"call": "unlock", "passphrase": "correct horse"},
    {"call": "passphrase", "old": None, "new": "correct horse"},
    {"call": "audit", "read_data": True, "cursor": None},
    {"call": "replay", "view": None},
    {"call": "retry", "view": "catalogue"},
    {"call": "export", "cursor": None},
    {"call": "backup", "folder": "/backup", "passphrase": None, "with_key_file": False},
    {"call": "invite", "expires_s": 86400.0, "own_device": False},
    {"call": "invitations"},
    {"call": "revoke_invitation", "invitation_id": "0123456789abcdef"},
    {"call": "remove", "did": "did:x", "reason": "left", "device": False},
]
CHANGE = {"position": 8, "type": "content-published/1", "author": "did:x", "time": "2026-01-01T00:00:00Z"}


def sealed(offset: int, data: bytes) -> bytes:
    return AESGCM(KEY).encrypt(offset.to_bytes(12, "big"), data, ID)


MESSAGES: list[tuple[str, str, Any, bytes | None]] = [
    *((f"call {n}: {c['call']}", "REQUEST", c, b"hello" if c.get("inline") else None) for n, c in enumerate(CALLS)),
    ("credit", "CREDIT", {"received": 5, "limit": 8_388_613}, None),
    ("data", "DATA", {"offset": 0}, b"hello"),
    ("sealed data, on the bulk socket", "DATA", {"offset": 5}, sealed(5, b"hello")),
    ("end", "END", {"length": 5}, None),
    ("cancel", "CANCEL", {}, None),
    ("ping", "PING", {}, None),
    ("attach", "ATTACH", {"proof": AESGCM(KEY).encrypt(bytes(4) + b"\xff" * 8, b"", ID)}, None),
    ("reply to publish", "REPLY", {"content_id": CONTENT, "position": 3}, None),
    ("reply to retract", "REPLY", 4, None),
    ("error", "ERROR", {"code": "busy", "message": "too many requests at once", "versions": [1]}, None),
    ("error that ends a stream", "ERROR", {"code": "stream-gone", "message": "gone", "versions": [1]}, None),
    ("opened: download", "OPENED", {"length": 5, "content_id": "", "limit": 0, "bulk_key": b""}, None),
    ("opened: small download, whole", "OPENED", {"length": 5, "content_id": "", "limit": 0, "bulk_key": b""}, b"hello"),
    ("opened: upload", "OPENED", {"length": 0, "content_id": CONTENT, "limit": 4_194_304, "bulk_key": KEY}, None),
    ("grant", "GRANT", {"received": 5, "limit": 4_194_309}, None),
    ("chunk", "CHUNK", {"offset": 0}, b"hello"),
    ("done", "DONE", {"length": 5}, None),
    (
        "changes",
        "CHANGES",
        {"sent": 0, "count": 1, "position": 9},
        msgspec.msgpack.encode([{**CHANGE, "ids": [CONTENT], "row": None}]),
    ),
    ("pong", "PONG", {"sent": 5, "limit": 4_194_309, "position": 0, "node": "0123456789abcdef"}, None),
]
HEAD = b"WVB\x01"
STATUS = msgspec.msgpack.encode({"call": "status"})


def query(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({"call": "query", "view": "v", "limit": 1} | fields)


REFUSED: list[tuple[str, str, list[bytes]]] = [
    ("one part", "untrusted-input", [HEAD + b"\x01" + ID]),
    ("four parts", "untrusted-input", [HEAD + b"\x01" + ID, STATUS, b"", b""]),
    ("a short header", "untrusted-input", [(HEAD + b"\x01" + ID)[:20], STATUS]),
    ("another magic", "untrusted-input", [b"XVB\x01\x01" + ID, STATUS]),
    ("another version", "protocol-version", [b"WVB\x02\x01" + ID, STATUS]),
    ("an unknown kind", "untrusted-input", [HEAD + b"\x77" + ID, STATUS]),
    ("data where none may be", "untrusted-input", [HEAD + b"\x06" + ID, b"\x80", b"x"]),
    ("an empty body", "untrusted-input", [HEAD + b"\x01" + ID, b""]),
    ("an unknown call", "untrusted-input", [HEAD + b"\x01" + ID, msgspec.msgpack.encode({"call": "none"})]),
    ("an unknown field", "untrusted-input", [HEAD + b"\x01" + ID, msgspec.msgpack.encode({"call": "lock", "x": 1})]),
    ("a limit of nothing", "untrusted-input", [HEAD + b"\x01" + ID, query(limit=0)]),
    ("a filter that is no number", "untrusted-input", [HEAD + b"\x01" + ID, query(filters={"n": float("nan")})]),
    ("an infinite filter", "untrusted-input", [HEAD + b"\x01" + ID, query(filters={"n": float("inf")})]),
    ("a filter of 2^63", "untrusted-input", [HEAD + b"\x01" + ID, query(filters={"n": 1 << 63})]),
    (
        "an expiry behind all times",
        "untrusted-input",
        [
            HEAD + b"\x01" + ID,
            msgspec.msgpack.encode({"call": "publish", "inline": True, "options": {"expires_ms": (1 << 53) + 1}}),
        ],
    ),
]


def shown(value: Any) -> Any:
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in value.items()} if isinstance(value, dict) else value


def make() -> dict[str, Any]:
    """All vectors."""
    messages = []
    for name, kind, body, data in MESSAGES:
        parts = [HEAD + bytes([KINDS[kind]]) + ID, msgspec.msgpack.encode(body), *([] if data is None else [data])]
        by = "node" if kind in NODE else "client"
        messages.append(
            {"name": name, "from": by, "kind": kind, "body": shown(body), "parts": [part.hex() for part in parts]}
        )
    refused = [{"name": n, "code": code, "parts": [part.hex() for part in parts]} for n, code, parts in REFUSED]
    return {"id": ID.hex(), "key": KEY.hex(), "messages": messages, "refused": refused}


def text() -> str:
    """The file."""
    return json.dumps(make(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
