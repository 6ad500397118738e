"""Walytis block ids taken apart: pure functions over untrusted bytes.

A long id is `short id || 0x00000000 || parents' short ids joined by 0x000000`. A short id is its fields joined by
0x0000: version, IPFS cid, creator, time, topics, content length, "sha512", content hash, number of parents,
"sha512", parents hash. The block file is the short id without the cid, the parents, 0x0000000000, the content; so
a file can be held against an id byte for byte. It refuses every id that is not of this exact shape.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Final

from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.ports import BlockRef

KEY_BYTES: Final = 16
MAX_LONG_ID: Final = 64 << 10
"""Bytes. About 150 parents; honest ids are near 940."""
MAX_CONTENT: Final = (1 << 20) + (8 << 10)
FIELDS: Final = 11
_PARENTS_MARK: Final = b"\0\0\0\0"
_PARENT_SEPARATOR: Final = b"\0\0\0"
_FIELD_SEPARATOR: Final = b"\0\0"
_CONTENT_MARK: Final = b"\0\0\0\0\0"


def key_of_short(short_id: bytes) -> bytes:
    """The 16 bytes that stand for a block in indexes."""
    return hashlib.sha256(short_id).digest()[:KEY_BYTES]


def key_of(block_id: bytes) -> bytes:
    """The key of a block named by its long or short id."""
    return key_of_short(short_of(block_id))


def short_of(block_id: bytes) -> bytes:
    """The short id inside a long id; a short id is returned as it is."""
    end = block_id.find(_PARENTS_MARK)
    return bytes(block_id if end < 0 else block_id[:end])


def parents_of(long_id: bytes) -> list[bytes]:
    """Short ids of the parents, as listed (a young chain lists one twice)."""
    _, mark, listed = long_id.partition(_PARENTS_MARK)
    if not mark:
        raise UntrustedInputError("a short block id stands where a long one is needed")
    return [bytes(p) for p in listed.split(_PARENT_SEPARATOR)] if listed else []


def ref_of(long_id: bytes) -> BlockRef:
    """The reference for a long id.

    Raises:
        UntrustedInputError: not a long id.
    """
    if len(long_id) > MAX_LONG_ID:
        raise UntrustedInputError(f"a block id of {len(long_id)} bytes: at most {MAX_LONG_ID} are accepted")
    long_id = bytes(long_id)
    parents = dict.fromkeys(key_of_short(parent) for parent in parents_of(long_id))
    return BlockRef(block_id=long_id, key=key_of(long_id), parents=tuple(parents))


def readable_ref(long_id: bytes) -> BlockRef | None:
    """The reference for a long id; None for one that `ref_of` refuses, so that one block cannot hide the others."""
    try:
        return ref_of(long_id)
    except UntrustedInputError:
        return None


def cid_of(block_id: bytes) -> str:
    """The IPFS content id that a block id names: letters and digits only, so that it can name a file.

    Raises:
        UntrustedInputError: there is none.
    """
    fields = short_of(block_id).split(_FIELD_SEPARATOR, 2)
    if len(fields) != 3:
        raise UntrustedInputError("malformed block id")
    return checked_cid(fields[1])


def maker_of(block_id: bytes) -> str:
    """The peer id that a block id names as its maker's, which nobody vouches for; "" when there is none."""
    fields = short_of(block_id).split(_FIELD_SEPARATOR, 3)
    return fields[2].decode(errors="replace") if len(fields) == 4 else ""


def checked_cid(cid: bytes | str) -> str:
    """A cid as text, if it is one. Raises UntrustedInputError."""
    raw = cid.encode() if isinstance(cid, str) else bytes(cid)
    if not 8 <= len(raw) <= 128 or not raw.isalnum() or not raw.isascii():
        raise UntrustedInputError(f"not an IPFS content id: {raw[:60]!r}")
    return raw.decode()


def content_of(file_data: bytes, long_id: bytes) -> bytes:
    """The content of a block file, after every byte of it was held against the block's id.

    Args:
        file_data: the whole block file.
        long_id: the id that the file must belong to.
    Raises:
        UntrustedInputError: file and id differ anywhere.
    """
    short, _, listed = long_id.partition(_PARENTS_MARK)
    fields = short.split(_FIELD_SEPARATOR)
    if len(fields) != FIELDS or fields[6] != b"sha512":
        raise UntrustedInputError("malformed block id")
    header = _FIELD_SEPARATOR.join([fields[0], *fields[2:]])
    header += (_PARENTS_MARK + listed if listed else b"") + _CONTENT_MARK
    if not file_data.startswith(header):
        raise UntrustedInputError("the block's header does not match its id")
    content = file_data[len(header) :]
    if len(content) != base255(fields[5]) or len(content) > MAX_CONTENT:
        raise UntrustedInputError("the block's content does not have the length that its id states")
    stated = base255(fields[7])
    if stated.bit_length() > 512:
        raise UntrustedInputError("malformed content hash in a block id")
    if not hmac.compare_digest(stated.to_bytes(64, "little"), hashlib.sha512(content).digest()):
        raise UntrustedInputError("the block's content does not match the hash in its id")
    return content


def base255(digits: bytes) -> int:
    """Upstream's numbers: base 255, most significant digit first, each digit one too large.

    Raises:
        UntrustedInputError: longer than a SHA-512 hash can be.
    """
    if not 1 <= len(digits) <= 65:
        raise UntrustedInputError("malformed number in a block id")
    number = 0
    for digit in digits:
        number = number * 255 + digit - 1
    return number


def to_base255(number: int) -> bytes:
    """The inverse of `base255`."""
    digits = bytearray()
    while number:
        number, digit = divmod(number, 255)
        digits.append(digit + 1)
    return bytes(reversed(digits)) or b"\1"


def hash_field(digest: bytes) -> bytes:
    """A SHA-512 digest as ids carry it."""
    return to_base255(int.from_bytes(digest, "little"))


def hash_bytes(field: bytes) -> bytes:
    """A digest out of an id as upstream takes it out: without its last zero bytes."""
    number = base255(field)
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


def timestamp_field(time: datetime) -> bytes:
    """A time (UTC) as ids carry it: seven numbers in base 254, digits two too large, separated by 1."""
    numbers = (time.year, time.month, time.day, time.hour, time.minute, time.second, time.microsecond)
    return b"\1".join(_base254(number) for number in numbers)


def _base254(number: int) -> bytes:
    digits = bytearray([number % 254 + 2])
    while number := number // 254:
        digits.insert(0, number % 254 + 2)
    return bytes(digits)


def time_of(block_id: bytes) -> datetime:
    """The time (UTC) that a block id states; nobody vouches for it. Raises UntrustedInputError."""
    fields = short_of(block_id).split(_FIELD_SEPARATOR)
    parts = fields[3].split(b"\1") if len(fields) == FIELDS else []
    if len(parts) != 7 or any(not 1 <= len(part) <= 4 or min(part) < 2 for part in parts):
        raise UntrustedInputError("malformed time in a block id")
    numbers = [0] * 7
    for place, part in enumerate(parts):
        for digit in part:
            numbers[place] = numbers[place] * 254 + digit - 2
    try:
        return datetime(*numbers[:6], numbers[6], tzinfo=UTC)  # type: ignore[misc, arg-type]
    except ValueError as e:
        raise UntrustedInputError("malformed time in a block id") from e


def topics_of(block_id: bytes) -> list[str]:
    """The topics that a block id states. Raises UntrustedInputError."""
    fields = short_of(block_id).split(_FIELD_SEPARATOR)
    if len(fields) != FIELDS:
        raise UntrustedInputError("malformed block id")
    return [topic.decode(errors="replace") for topic in fields[4].split(b"\0") if topic]
