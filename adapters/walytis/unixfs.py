"""How kubo stores a file: UnixFS nodes, their content ids, and their place in the repository. Pure functions.

Covers what upstream's `ipfs add` defaults do with files up to 1.3 MiB (CIDv0, chunks of 256 KiB, no raw leaves, one
root): a content id can be known without asking the node, and bytes from a stranger be held against one.
Spec: https://github.com/ipfs/specs/blob/main/UNIXFS.md and the dag-pb codec.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple

from walytis_vault.domain.errors import MisuseError, UntrustedInputError

CHUNK_BYTES: Final = 256 << 10
MAX_FILE_BYTES: Final = 5 * CHUNK_BYTES
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SHA256_PREFIX: Final = b"\x12\x20"


class Node(NamedTuple):
    """One stored node: its multihash and its bytes."""

    multihash: bytes
    data: bytes


def nodes_of(file_data: bytes) -> list[Node]:
    """The nodes that a file becomes, the root last.

    Raises:
        MisuseError: the file is larger than one root can hold here.
    """
    if len(file_data) > MAX_FILE_BYTES:
        raise MisuseError(f"a file of {len(file_data)} bytes: at most {MAX_FILE_BYTES} are stored in one root")
    chunks = [file_data[at : at + CHUNK_BYTES] for at in range(0, len(file_data), CHUNK_BYTES)] or [b""]
    leaves = [_node(_leaf(chunk)) for chunk in chunks]
    if len(leaves) == 1:
        return leaves
    links = b"".join(
        _field(2, _field(1, leaf.multihash) + b"\x12\x00" + b"\x18" + _varint(len(leaf.data))) for leaf in leaves
    )
    sizes = b"".join(b"\x20" + _varint(len(chunk)) for chunk in chunks)
    root = links + _field(1, b"\x08\x02\x18" + _varint(len(file_data)) + sizes)
    return [*leaves, _node(root)]


def cid_of(file_data: bytes) -> str:
    """The content id that `ipfs add` gives the file."""
    return text_of(nodes_of(file_data)[-1].multihash)


def text_of(multihash: bytes) -> str:
    """A version 0 content id, or a peer id, as text: base 58."""
    number, digits = int.from_bytes(multihash, "big"), []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    zeros = len(multihash) - len(multihash.lstrip(b"\0"))
    return _ALPHABET[0] * zeros + "".join(reversed(digits))


def flatfs_name(multihash: bytes) -> tuple[str, str]:
    """Folder and file name of a node in a flatfs datastore with the shard function next-to-last/2."""
    key = base64.b32encode(multihash).decode().rstrip("=")
    return key[-3:-1], f"{key}.data"


def multihash_of(cid: str) -> bytes:
    """The multihash in a version 0 content id. Raises UntrustedInputError."""
    number = 0
    for character in cid:
        digit = _ALPHABET.find(character)
        if digit < 0:
            raise UntrustedInputError("not a version 0 content id")
        number = number * 58 + digit
    if not cid or number.bit_length() > 8 * 34:
        raise UntrustedInputError("not a version 0 content id")
    return number.to_bytes(34, "big")


def file_of(cid: str, node_of: Callable[[bytes], bytes]) -> bytes:
    """Put a file together from its stored nodes: the inverse of `nodes_of`.

    Args:
        cid: the file's content id.
        node_of: the bytes of a node by its multihash.
    Raises:
        UntrustedInputError: the nodes are not those of a file with this content id.
    """
    root = _fields(node_of(multihash_of(cid)))
    links = [_fields(value) for number, value in root if number == 2]
    if len(links) > MAX_FILE_BYTES // CHUNK_BYTES:
        raise UntrustedInputError("more chunks than a block can have")
    leaves = [_fields(node_of(dict(link).get(1, b""))) for link in links] or [root]
    data = b"".join(dict(_fields(dict(leaf).get(1, b""))).get(2, b"") for leaf in leaves)
    if cid_of(data) != cid:
        raise UntrustedInputError("the stored nodes are damaged")
    return data


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message, numbers left out."""
    found, at = [], 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if tag & 7 == 2:
            found.append((tag >> 3, message[at : at + value]))
            at += value
        elif tag & 7 != 0:
            raise UntrustedInputError("not a stored node")
    return found


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 63:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise UntrustedInputError("not a stored node")


def matches_flatfs_name(name: str, data: bytes) -> bool:
    """Whether a stored node's bytes have the SHA-256 that its file name states. Unknown kinds of names pass."""
    key = name.removesuffix(".data")
    try:
        multihash = base64.b32decode(key + "=" * (-len(key) % 8))
    except ValueError:
        return True
    return multihash[:2] != _SHA256_PREFIX or multihash[2:] == hashlib.sha256(data).digest()


def _leaf(chunk: bytes) -> bytes:
    data = b"\x08\x02" + (_field(2, chunk) if chunk else b"") + b"\x18" + _varint(len(chunk))
    return _field(1, data)


def _node(data: bytes) -> Node:
    return Node(_SHA256_PREFIX + hashlib.sha256(data).digest(), data)


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
