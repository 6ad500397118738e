"""Makes cobblestone_vectors.json: what the published vectors of C2SP chunked encryption test, for our instantiation.

The published file (c2sp/) has SHA-256 as its hash; Cobblestone, which we use, has SHA-512. So each of its classes
is made once more with the reference, which the published file holds: same names, same defects, same limits on what
may be released. Run from the project's folder: `python tests/vectors/make_cobblestone_vectors.py`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from vectors.c2sp_reference import (  # noqa: E402
    CHUNK,
    COBBLESTONE_128,
    COBBLESTONE_256,
    COMMITMENT,
    SALT,
    TAG,
    Scheme,
    chunks_of,
    encrypt,
    seal_chunks,
)

FILE = HERE / "cobblestone_vectors.json"
SCHEMES = {"aes128gcm": COBBLESTONE_128, "aes256gcm": COBBLESTONE_256}
HEADER = SALT + COMMITMENT
SHOWN = 512
"""Ciphertexts up to this many bytes stand in the file; of longer ones only their hash."""


class Vector(NamedTuple):
    """One ciphertext with at most one defect."""

    name: str
    key: bytes
    context: bytes
    ciphertext: bytes
    message: bytes | None
    """What it opens to; None when it must be refused."""
    released: int = 0
    """Bytes that a streaming reader may have given out before it refuses."""


def stream(seed: str, size: int) -> bytes:
    """Bytes that everyone can make again: SHAKE-256 of a seed."""
    return hashlib.shake_256(b"cobblestone " + seed.encode()).digest(size)


def make_vectors(prefix: str) -> Iterator[Vector]:
    """All vectors of one key size."""
    scheme = SCHEMES[prefix]
    for short, key, context, ciphertext, message, released in (*_good(scheme), *_bad(scheme)):
        yield Vector(f"{prefix}_{short}", key, context, ciphertext, message, released)


def _key(scheme: Scheme, more: int = 0) -> bytes:
    return stream("key", scheme.key_bytes + more)


def _good(scheme: Scheme) -> Iterator[Vector]:
    sizes = {
        "empty_payload": 0,
        "short_payload": 7,
        "two_chunks": CHUNK + 1,
        "two_chunks_full": 2 * CHUNK,
        "three_chunks": 2 * CHUNK + 1,
        "last_chunk_empty": CHUNK,
        "257_chunks": 256 * CHUNK + 1,
        "context": 7,
        "context_with_null": 7,
    }
    for name, size in sizes.items():
        context = {"context": b"a context", "context_with_null": b"a\x00context"}.get(name, b"")
        key, message = _key(scheme), stream(name, size)
        yield Vector(name, key, context, encrypt(key, stream(f"salt {name}", SALT), context, message, scheme), message)


def _bad(scheme: Scheme) -> Iterator[Vector]:
    key, salt = _key(scheme), stream("salt", SALT)

    def sealed(size: int, context: bytes = b"", by: bytes = key) -> list[bytes]:
        return seal_chunks(by, salt, context, chunks_of(stream("message", size)), scheme)

    def bad(name: str, *pieces: bytes, released: int = 0, context: bytes = b"", by: bytes = key) -> Vector:
        return Vector(name, by, context, b"".join(pieces), None, released)

    short, long, full, three = sealed(7), sealed(CHUNK + 7), sealed(2 * CHUNK), sealed(2 * CHUNK + 7)
    one, header = b"".join(short), short[0]
    yield bad("bad_tag", _flipped(one, HEADER))
    yield bad("bad_tag_second_chunk", *long[:2], _flipped(long[2], 0), released=CHUNK)
    yield bad("bad_tag_second_chunk_full", *full[:2], _flipped(full[2], 100), full[3], released=CHUNK)
    exact = sealed(CHUNK)
    yield bad("bad_tag_empty_final_chunk", *exact[:2], _flipped(exact[2], -1), released=CHUNK)
    yield bad("bad_tag_first_chunk", long[0], _flipped(long[1], 100), long[2])
    yield bad("missing_tag", one[:-TAG])
    yield bad("short_chunk", header, short[1][: TAG - 4])
    yield bad("trailing_garbage_long", *long, stream("garbage", 20), released=CHUNK)
    yield bad("trailing_garbage_short", *long, stream("garbage", 12), released=CHUNK)
    yield bad("no_chunks", header)
    yield bad("wrong_commitment", _flipped(one, SALT))
    yield bad("wrong_key", one, by=stream("another key", scheme.key_bytes))
    for name, more in (("short_key", -1), ("long_key", 1)):
        yield bad(name, *sealed(7, by=_key(scheme, more)), by=_key(scheme, more))
    yield bad("wrong_context", *sealed(7, b"a context"), context=b"another context")
    yield bad("wrong_salt", _flipped(one, 0))
    yield bad("empty_message")
    yield bad("short_header_no_commitment", one[:SALT])
    yield bad("short_header_partial_commitment", one[:40])
    yield bad("short_header_no_salt", one[: SALT - 8])
    yield bad("truncated_at_chunk_boundary", *exact[:2], released=CHUNK)
    yield bad("truncated_mid_chunk", *three[:2], three[2][:1000], released=CHUNK)
    yield bad("swapped_chunks", three[0], three[2], three[1], three[3])
    yield bad("duplicated_chunk", three[0], three[1], three[1], three[3], released=CHUNK)
    wrong = seal_chunks(key, salt, b"", [*chunks_of(stream("message", CHUNK + 7)), b"more"], scheme)
    yield bad("extension_after_final", *wrong, released=CHUNK)


def _flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def make() -> str:
    """The file's text."""
    rows: list[dict[str, Any]] = []
    for vector in (v for prefix in SCHEMES for v in make_vectors(prefix)):
        good = vector.message is not None
        rows.append(
            {
                "name": vector.name,
                "key": vector.key.hex(),
                "context": vector.context.hex(),
                "ciphertext": vector.ciphertext.hex() if len(vector.ciphertext) <= SHOWN else None,
                "ciphertext_length": len(vector.ciphertext),
                "ciphertext_sha256": hashlib.sha256(vector.ciphertext).hexdigest(),
                "expect": "success" if good else "failure",
                "message_sha256": hashlib.sha256(vector.message).hexdigest() if vector.message is not None else None,
                "released": len(vector.message) if vector.message is not None else vector.released,
            }
        )
    return json.dumps({"vectors": rows}, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(make())
