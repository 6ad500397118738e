"""The words of the peer door: requests, replies, frames and limits. Spec: docs/peer-protocol.md.

A message is three or more frames: `WVP1` and a 16-byte nonce, a MessagePack map, payload. Everything is capped
before it is allocated; decoding is strict and knows only the types below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from walytis_vault.adapters.exchange.key_transfer import KEM_PUBLIC_BYTES
from walytis_vault.adapters.exchange.sealed_stream import KEY_BYTES, SESSION_BYTES
from walytis_vault.domain.batch import ENVELOPE_BYTES, SIGNATURE_BYTES
from walytis_vault.domain.errors import TransportError, UntrustedInputError, VaultError, error_from_code
from walytis_vault.domain.events import Counter, DidText, Id16
from walytis_vault.domain.limits import LIMITS, SEGMENT_BYTES

MAGIC: Final = b"WVP1"
NONCE_BYTES: Final = 16
BODY_LIMIT: Final = 256 << 10
"""Bytes of a message's MessagePack map."""
PART_LIMIT: Final = ENVELOPE_BYTES + LIMITS.batch_body
"""Bytes of any frame: the largest is one batch."""
PAYLOAD_FRAMES: Final = 256
"""Payload frames of one message (a count)."""
BATCH_BYTES: Final = 2 << 20
"""Bytes of batches in one message, unless a single one is larger."""
HOLDS_AT_ONCE: Final = 500
"""Contents in one question who holds them (a count): a page of rows."""
BLOCKS_AT_ONCE: Final = 64
"""Block files in one question (a count)."""
LEAVES_AT_ONCE: Final = SEGMENT_BYTES // 32
"""Leaf hashes in one reply (a count)."""

Address = Annotated[str, Meta(min_length=1, max_length=256)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=16)]
Contents = Annotated[tuple[Id16, ...], Meta(max_length=HOLDS_AT_ONCE)]
Cids = Annotated[tuple[Annotated[str, Meta(min_length=8, max_length=128)], ...], Meta(max_length=BLOCKS_AT_ONCE)]
PeerId = Annotated[str, Meta(min_length=1, max_length=128)]
Known = Annotated[dict[PeerId, Addresses], Meta(max_length=LIMITS.members)]
HAVE_ENTRIES: Final = 4 * LIMITS.members
"""Devices in one part of a `have` (a count)."""
Have = Annotated[dict[DidText, Counter], Meta(max_length=HAVE_ENTRIES)]
"""Device DID -> the number of its last batch that is here."""
HAVE_PART: Final = BODY_LIMIT // 2
"""Bytes of `have` in one place; the rest of a longer one follows in payload frames, up to so many:"""
HAVE_FRAMES: Final = 64
KNOWN_PART: Final = BODY_LIMIT // 4
"""Bytes of addresses that are passed on at once."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="t"):
    """Base of all requests and replies."""


class Hello(Message, frozen=True, tag="hello"):
    """Who I am follows from my key; this is where I am and what I have."""

    addresses: Addresses
    known: Known
    have: Have
    """Here and below: what does not fit is in the payload. See `have_parts`."""


class Pull(Message, frozen=True, tag="pull"):
    """Send me batches that I lack, oldest first."""

    have: Have


class Push(Message, frozen=True, tag="push"):
    """Batches, one in each payload frame."""


class Blocks(Message, frozen=True, tag="blocks"):
    """Which of these blocks of the vault's chain do you have? Their files, please."""

    cids: Cids
    """IPFS content ids."""


class Fetch(Message, frozen=True, tag="fetch"):
    """Do you hold this content? If so: its key for this request, and its first segment as payload."""

    content_id: Id16
    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)] = bytes(16)
    public: Annotated[bytes, Meta(max_length=KEM_PUBLIC_BYTES)] = b""
    """Empty: no key is wanted."""
    signature: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)] = b""
    first: bool = True
    """Whether the first segment is wanted too."""


class Holds(Message, frozen=True, tag="holds"):
    """Which of these contents do you hold?"""

    contents: Contents


class Leaves(Message, frozen=True, tag="leaves"):
    """Leaf hashes from a number on."""

    content_id: Id16
    start: Counter


class Segment(Message, frozen=True, tag="segment"):
    """One segment of ciphertext."""

    content_id: Id16
    number: Counter


class Stream(Message, frozen=True, tag="stream"):
    """A session of the bulk door for this content, please."""

    content_id: Id16


class JoinGroup(Message, frozen=True, tag="join-group"):
    """By an invited: a fresh invitation of the identity library, as payload."""


class ChainSize(Message, frozen=True, tag="chain-size"):
    """By an invited: pack the log chain for me; how large is it?"""


class ChainPart(Message, frozen=True, tag="chain-part"):
    """By an invited: the bytes of the pack from an offset on, at most 1 MiB."""

    offset: Counter


class Admit(Message, frozen=True, tag="admit"):
    """By an invited: let this device in."""

    keys: Annotated[bytes, Meta(max_length=8192)]
    """DeviceKeys as MessagePack."""
    addresses: Addresses


Member = Hello | Pull | Push | Blocks | Fetch | Holds | Leaves | Segment | Stream
Invited = JoinGroup | ChainSize | ChainPart | Admit
Request = Member | Invited


class Greeting(Message, frozen=True, tag="greeting"):
    """Reply to Hello."""

    addresses: Addresses
    known: Known
    have: Have


class Batches(Message, frozen=True, tag="batches"):
    """Reply to Pull: batches in the payload."""

    more: bool


class Taken(Message, frozen=True, tag="taken"):
    """Reply to Push."""

    missing: bool
    """A cause of some batch is not there: a Pull will follow."""


class Fetched(Message, frozen=True, tag="fetched"):
    """Reply to Fetch."""

    state: Annotated[str, Meta(max_length=16)]
    """"here", "unknown" (not here, or not for you) or "gone" (forgotten)."""
    sealed_key: Annotated[bytes, Meta(max_length=2048)] = b""


class Held(Message, frozen=True, tag="held"):
    """Reply to Holds: those that are here whole, and for you."""

    contents: Contents


class Streaming(Message, frozen=True, tag="streaming"):
    """Reply to Stream: for one connection, soon."""

    session: Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
    key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class Done(Message, frozen=True, tag="done"):
    """Reply without words; the payload is the answer, if there is one."""

    number: Counter = 0


class Refused(Message, frozen=True, tag="refused"):
    """The request failed."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=1000)]


Reply = Greeting | Batches | Taken | Fetched | Held | Streaming | Done | Refused

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request, strict=True)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply, strict=True)
_haves: msgspec.msgpack.Decoder[dict[str, int]] = msgspec.msgpack.Decoder(Have, strict=True)


def pack(nonce: bytes, message: Request | Reply, payload: Sequence[bytes] = ()) -> list[bytes]:
    """The frames of a message."""
    return [MAGIC + nonce, _encoder.encode(message), *payload]


def nonce_of(frames: Sequence[bytes]) -> bytes:
    """The nonce of a message. Raises UntrustedInputError for anything that is none."""
    if not 2 <= len(frames) <= 2 + PAYLOAD_FRAMES or len(frames[0]) != len(MAGIC) + NONCE_BYTES:
        raise UntrustedInputError("not a message of the peer protocol")
    if frames[0][: len(MAGIC)] != MAGIC:
        raise UntrustedInputError("a message of another version of the peer protocol")
    if len(frames[1]) > BODY_LIMIT:
        raise UntrustedInputError("a peer's message is too large")
    return frames[0][len(MAGIC) :]


def read_request(frames: Sequence[bytes]) -> Request:
    """Decode what a peer asks. Raises UntrustedInputError."""
    try:
        return _requests.decode(frames[1])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise UntrustedInputError("a peer's request is malformed") from e


def read_reply(frames: Sequence[bytes]) -> Reply:
    """Decode what a peer answers. Raises UntrustedInputError."""
    try:
        return _replies.decode(frames[1])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise UntrustedInputError("a peer's reply is malformed") from e


def refusal(error: VaultError) -> Refused:
    """Tell a peer about an error: the kind, and a sentence."""
    return Refused(code=error.code, message=str(error)[:1000])


def error_of(refused: Refused) -> VaultError:
    """The error that a peer told of."""
    error = error_from_code(refused.code, f"the other node: {refused.message}")
    return error if type(error) is not VaultError else TransportError(str(error))


def have_parts(have: Have) -> tuple[Have, list[bytes]]:
    """A `have` of any length for a message: what goes into its map, and the payload frames with the rest."""
    parts: list[dict[str, int]] = [{}]
    size = 0
    for device, number in have.items():
        size += len(device.encode()) + 16
        if size > HAVE_PART or len(parts[-1]) >= HAVE_ENTRIES:
            parts.append({})
            size = len(device.encode()) + 16
        parts[-1][device] = number
    return parts[0], [_encoder.encode(part) for part in parts[1 : 1 + HAVE_FRAMES]]


def whole_have(first: Have, payload: Sequence[bytes]) -> Have:
    """What `have_parts` took apart. Raises UntrustedInputError."""
    whole = dict(first)
    if len(payload) > HAVE_FRAMES or any(len(part) > BODY_LIMIT for part in payload):
        raise UntrustedInputError("a peer tells of more devices than there can be")
    try:
        for part in payload:
            whole.update(_haves.decode(part))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise UntrustedInputError("a peer's list of what it has is malformed") from e
    return whole


def fitting_known(known: Mapping[str, Addresses]) -> dict[str, Addresses]:
    """As many entries, the first first, as may be passed on at once."""
    fitting, size = dict[str, Addresses](), 0
    for peer_id, addresses in known.items():
        size += len(peer_id) + sum(len(address.encode()) + 5 for address in addresses)
        if size > KNOWN_PART or len(fitting) >= LIMITS.members:
            break
        fitting[peer_id] = addresses
    return fitting
