"""The frames of the bus, version 1: how a message is split, checked and packed.

A message is 2 or 3 ZeroMQ parts: a 21-byte header with the protocol version first, a MessagePack body, and
raw data where the kind says so. This module only judges bytes: it opens no socket and reads no clock. It
refuses by size before it decodes, and decodes into closed types only. Spec: docs/bus-protocol.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from walytis_vault.bus.messages import Change
from walytis_vault.domain.errors import ProtocolVersionError, UntrustedInputError, VaultError, error_from_code

MAGIC: Final = b"WVB"
VERSION: Final = 1
HEADER_BYTES: Final = 21
ID_BYTES: Final = 16
NO_ID: Final = bytes(ID_BYTES)
NOT_YET: Final = 500
"""ZAP's status for a key that may connect again later; its own word for that, 300, would not reach the client."""
_PREFIX: Final = MAGIC + bytes([VERSION])


class Kind(IntEnum):
    """The fifth byte of a header. Below 0x80: to the node. From 0x80: to the client."""

    REQUEST = 0x01
    CREDIT = 0x02
    DATA = 0x03
    END = 0x04
    CANCEL = 0x05
    PING = 0x06
    ATTACH = 0x07
    REPLY = 0x81
    ERROR = 0x82
    OPENED = 0x83
    GRANT = 0x84
    CHUNK = 0x85
    DONE = 0x86
    CHANGES = 0x87
    PONG = 0x88


WITH_DATA: Final = frozenset({Kind.REQUEST, Kind.DATA, Kind.OPENED, Kind.CHUNK, Kind.CHANGES})
"""Kinds that may have a third part."""


class BusLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one node takes on. Sizes are bytes, times are seconds. A test may pass smaller ones."""

    chunk: int = 256 << 10
    """Data in one DATA or CHUNK part."""
    bulk_chunk: int = 1 << 20
    """The same for CHUNK on the bulk socket: each message costs both sides as much as sealing 100 KiB."""
    inline: int = 128 << 10
    """Content that may travel inside its publish request, or whole inside OPENED."""
    body: int = 128 << 10
    """MessagePack body of a message to the node."""
    part: int = (256 << 10) + 64
    """Largest part that the node takes: libzmq cuts a connection that sends a larger one."""
    reply: int = 4 << 20
    """Largest body of a message to a client."""
    page: int = 512 << 10
    """A page of rows or changes is made smaller when it would become larger than this."""
    bulk_least: int = 1 << 20
    """Smaller streams do not use the bulk socket."""
    window: int = 8 << 20
    """Unacknowledged bytes of one download."""
    upload_window: int = 4 << 20
    """Bytes that one upload may send ahead of what was written."""
    peer_bytes: int = 32 << 20
    """Unacknowledged bytes of all downloads of one connection, and granted bytes of all its uploads."""
    client_bytes: int = 64 << 20
    """The same of all connections of one client key."""
    client_least: int = 1 << 20
    """What a client key may have of it though the others took all."""
    total_bytes: int = 256 << 20
    """The same of all connections together, but for `client_least`; the same again for uploads."""
    peer_requests: int = 256
    """Requests of one connection that are being worked on (a count)."""
    client_requests: int = 1024
    """Requests of one client key (a count)."""
    client_streams: int = 64
    """Open downloads and uploads of one client key (a count)."""
    client_subscriptions: int = 1024
    """Open subscriptions and waits of one client key (a count)."""
    client_connections: int = 640
    """Connections of one client key; a further one is cut (a count)."""
    client_connects: int = 64
    """New connections of one client key in a second, ten times as many at once; with more its key waits (a count)."""
    connects: int = 256
    """New connections in a second; with more, nobody new is let in for a moment. A refused one counts 16 times."""
    malformed: int = 16
    """Malformed messages after which a connection is cut (a count)."""
    refusals: int = 512
    """Times in a second that a connection may be told `busy`, send data of no stream, or cancel what has not begun;
    with more it is cut (a count)."""
    peer_waiting: int = 4096
    """Messages that wait for one connection to take them; with more it is cut (a count)."""
    peer_waiting_bytes: int = 32 << 20
    """Bytes of them, but for data that credit bounds; with more it is cut, from a quarter on requests get `busy`."""
    total_waiting_bytes: int = 128 << 20
    """The same of all connections; with more the one for which most waits is cut."""
    page_rows: int = 500
    """Rows in one reply to a query (a count)."""
    changes: int = 256
    """Changes in one message, and the most that a subscriber may have unacknowledged (a count)."""
    idle: float = 30.0
    """A stream whose client is silent for so long is cut."""
    stalled: float = 30.0
    """A connection that takes nothing for so long while something waits for it is cut."""
    memory: int = 512 << 20
    """Bytes by which the process may grow in ten minutes; with more, whoever finishes no message is cut."""
    mute: float = 300.0
    """A connection that says nothing for so long is ended; its client connects again when it has something to say."""
    quiet: float = 60.0
    """A connection that says nothing for so long is looked after: whether it is still there."""


class Header(msgspec.Struct, frozen=True):
    """A checked message: nothing of its body is decoded yet."""

    kind: Kind
    id: bytes
    body: bytes
    data: bytes | memoryview


Offset = Annotated[int, Meta(ge=0, le=2**53)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the bodies that a node reads: strict, an unknown field is an error."""


class Credit(Body, frozen=True, kw_only=True):
    """Receiver to sender: `received` is consumed, up to `limit` may be sent. Bytes; for subscriptions, changes."""

    received: Offset
    limit: Offset


class Place(Body, frozen=True, kw_only=True):
    """Where the data part of a DATA or CHUNK begins, in bytes."""

    offset: Offset


class Length(Body, frozen=True, kw_only=True):
    """END and DONE: how many bytes the whole stream has; for subscriptions, changes. The receiver compares."""

    length: Offset


class Nothing(Body, frozen=True, kw_only=True):
    """CANCEL and PING have an empty map as body."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error: a stable code (domain.errors) and a sentence for people."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=4096)]
    versions: tuple[int, ...] = (VERSION,)
    """Versions that the node speaks. Filled in every error, so that any client can tell."""


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The stream stands. Downloads: its whole length. Uploads: the content id and the first credit."""

    length: Offset = 0
    content_id: str = ""
    limit: Offset = 0
    bulk_key: Annotated[bytes, Meta(max_length=32)] = b""
    """Not empty: the stream's data goes over the bulk socket, sealed under this key."""


class Attach(Body, frozen=True, kw_only=True):
    """ATTACH, on the bulk socket: proves to know a download's key."""

    proof: Annotated[bytes, Meta(max_length=16)]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """CHANGES: the data part holds `count` changes, as a MessagePack array; `sent` went before on this subscription."""

    sent: Offset
    count: Offset
    position: Offset
    """All changes up to here have been looked at: where to go on from."""


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to PING. `sent` and `limit`: how far the stream of that id is, as the node sees it."""

    sent: Offset = 0
    limit: Offset = 0
    position: Offset = 0
    """Subscriptions: all changes up to here have been looked at. There `sent` and `limit` count changes."""
    node: str = ""
    """Random text of this run of the node."""


_encoder = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


def header(kind: Kind, message_id: bytes) -> bytes:
    """The first part of a message of this version."""
    return _PREFIX + bytes([kind]) + message_id


def pack(kind: Kind, message_id: bytes, body: Any, data: bytes | memoryview | None = None) -> list[bytes | memoryview]:
    """Make the parts of a message.

    Args:
        kind: what it is.
        message_id: 16 bytes: the request or stream that it belongs to.
        body: a struct or builtin value; encoded as MessagePack.
        data: raw third part, for the kinds in `WITH_DATA`.
    """
    parts: list[bytes | memoryview] = [header(kind, message_id), _encoder.encode(body)]
    if data is not None:
        parts.append(data)
    return parts


def encode(value: Any) -> bytes:
    """MessagePack of a struct or builtin value."""
    return _encoder.encode(value)


def split(parts: Sequence[bytes | memoryview], *, body_cap: int, data_cap: int) -> Header:
    """Check the parts of a message by count, size, version and kind, in this order.

    Raises:
        ProtocolVersionError: the magic is right and the version is another one.
        UntrustedInputError: anything else that is wrong.
    """
    if not 2 <= len(parts) <= 3:
        raise UntrustedInputError(f"a message has 2 or 3 parts, not {len(parts)}")
    if len(parts[0]) != HEADER_BYTES:
        raise UntrustedInputError(f"a header has {HEADER_BYTES} bytes, not {len(parts[0])}")
    head = bytes(parts[0])
    if head[:3] != MAGIC:
        raise UntrustedInputError("this is not the walytis-vault bus protocol")
    if head[3] != VERSION:
        raise ProtocolVersionError(f"bus protocol version {head[3]} is not spoken here: use version {VERSION}")
    try:
        kind = Kind(head[4])
    except ValueError as e:
        raise UntrustedInputError(f"unknown kind of message: 0x{head[4]:02x}") from e
    if len(parts[1]) > body_cap:
        raise UntrustedInputError(f"a body of {len(parts[1])} bytes is over the limit of {body_cap}")
    data: bytes | memoryview = b""
    if len(parts) == 3:
        if kind not in WITH_DATA:
            raise UntrustedInputError(f"a message of kind {kind.name} has no data part")
        data = parts[2]
        if len(data) > data_cap:
            raise UntrustedInputError(f"data of {len(data)} bytes is over the limit of {data_cap}")
    return Header(kind, head[5:], bytes(parts[1]), data)


def decode(decoder: msgspec.msgpack.Decoder[_T], body: bytes) -> _T:
    """Decode a body strictly. Raises UntrustedInputError, and nothing else, on any bytes."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as e:
        raise UntrustedInputError(f"malformed message body: {str(e)[:200]}") from e


def failure(error: VaultError) -> Failure:
    """The wire form of an error."""
    return Failure(code=error.code, message=str(error)[:4096])


def raised(body: Failure) -> VaultError:
    """The error that a node reported, as the class that it raised."""
    return error_from_code(body.code, body.message)


STREAM_GONE: Final = "stream-gone"
"""Code for a message about a stream that the node does not have (any more). Clients begin a new one."""

GONE: Final = Failure(code=STREAM_GONE, message="the node has no such stream (any more)")

CREDIT: Final = msgspec.msgpack.Decoder(Credit)
PLACE: Final = msgspec.msgpack.Decoder(Place)
LENGTH: Final = msgspec.msgpack.Decoder(Length)
NOTHING: Final = msgspec.msgpack.Decoder(Nothing)
ATTACH: Final = msgspec.msgpack.Decoder(Attach)
FAILURE: Final = msgspec.msgpack.Decoder(Failure)
OPENED: Final = msgspec.msgpack.Decoder(Opened)
SPAN: Final = msgspec.msgpack.Decoder(Span)
CHANGES: Final = msgspec.msgpack.Decoder(tuple[Change, ...])
PONG: Final = msgspec.msgpack.Decoder(Pong)
