"""The canary scan: is a secret anywhere in a folder, raw or in any encoding that software leaves behind?

Looks at every byte of every file, and at every name. It proves nothing by itself: a test must see it hit
before it may believe that it does not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Hit(NamedTuple):
    """Where a canary was found, and in which encoding."""

    path: str
    canary: str
    encoding: str


def find_canaries(folder: Path, canaries: Mapping[str, bytes]) -> list[Hit]:
    """Search every file and every name below `folder`.

    Args:
        canaries: a name for each secret; secrets of at least 16 bytes, so that nothing hits by chance.
    """
    patterns = [(name, how, pattern) for name, secret in canaries.items() for how, pattern in encodings(secret)]
    hits: list[Hit] = []
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        label = str(path.relative_to(folder))
        haystack = data + b"\x00" + label.encode()
        hits += [Hit(label, name, how) for name, how, pattern in patterns if pattern in haystack]
    return hits


def encodings(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """Every form in which the secret is searched."""
    if len(secret) < 16:
        raise ValueError("a canary needs at least 16 bytes")
    yield "raw", secret
    yield "hex", secret.hex().encode()
    yield "HEX", secret.hex().upper().encode()
    for alignment in range(3):
        yield f"base64+{alignment}", _aligned(base64.b64encode(bytes(alignment) + secret), alignment)
        yield f"base64url+{alignment}", _aligned(base64.urlsafe_b64encode(bytes(alignment) + secret), alignment)
    text = secret.decode("latin-1")
    yield "json", json.dumps(text)[1:-1].encode()
    yield "json latin-1", json.dumps(text, ensure_ascii=False)[1:-1].encode()
    yield "utf-16-le", text.encode("utf-16-le")
    yield "utf-16-be", text.encode("utf-16-be")
    yield "hex utf-16-le", secret.hex().encode("utf-16-le")
    yield "utf-8 of latin-1", text.encode()


def _aligned(encoded: bytes, alignment: int) -> bytes:
    """Cut the characters that depend on bytes before or after the secret."""
    start = -(-alignment * 8 // 6)
    return encoded.rstrip(b"=")[start:-1]
