"""The descriptor of a content (name, media type, labels, true length, note) and the reasons of ballots, sealed.

Both are sealed under subkeys of the content key and bound to the content id: they die with the key. Sizes
are padded, so that the length of a name says little. Format: docs/wire-format-content.md, "Descriptor".
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from walytis_vault.adapters.crypto.labels import DESCRIPTOR, REASON, SUBKEY_SALT
from walytis_vault.adapters.crypto.sealing import SEAL_OVERHEAD, Sealer, derive_subkey
from walytis_vault.domain.errors import MisuseError, UntrustedInputError
from walytis_vault.domain.ids import ContentId, ContentKey
from walytis_vault.domain.limits import LIMITS

PADDING_STEPS: Final = (192, 448, 960, 1984, 4032, 8128, LIMITS.descriptor - SEAL_OVERHEAD)
"""Plaintext sizes of a sealed text: it is padded to the first that fits."""
LENGTH_BYTES: Final = 2

Length = Annotated[int, Meta(ge=0, le=LIMITS.content)]


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """What a publisher says about a content. Seen by members only, until it is forgotten."""

    name: str | None = None
    media_type: str | None = None
    labels: tuple[str, ...] = ()
    length: Length
    """True plaintext bytes."""
    note: str | None = None

    def check(self) -> None:
        """Hold the text fields against the limits.

        Raises:
            MisuseError: one is too long; the message says which and what the limit is.
        """
        _limit("the name", self.name, LIMITS.name)
        _limit("the media type", self.media_type, LIMITS.media_type)
        if len(self.labels) > LIMITS.labels:
            raise MisuseError(f"{len(self.labels)} labels: a content has at most {LIMITS.labels}")
        for label in self.labels:
            _limit("a label", label, LIMITS.label)
        if not 0 <= self.length <= LIMITS.content:
            raise MisuseError(f"a content has at most {LIMITS.content} bytes")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Descriptor, strict=True)


def seal_descriptor(key: ContentKey, content_id: ContentId, descriptor: Descriptor) -> bytes:
    """Seal a descriptor for `ContentPublished.descriptor`.

    Raises:
        MisuseError: a field, or all together, exceed the limits.
    """
    descriptor.check()
    return _seal(key, DESCRIPTOR, content_id, _encoder.encode(descriptor), "name, labels and note together")


def open_descriptor(key: ContentKey, content_id: ContentId, sealed: bytes) -> Descriptor:
    """Open a sealed descriptor.

    Raises:
        UntrustedInputError: changed, of another content, malformed, or over the limits.
    """
    raw = _open(key, DESCRIPTOR, content_id, sealed)
    try:
        descriptor = _decoder.decode(raw)
        descriptor.check()
    except (msgspec.MsgspecError, UnicodeDecodeError, MisuseError, RecursionError) as e:
        raise UntrustedInputError(f"malformed descriptor: {e}") from e
    return descriptor


def seal_reason(key: ContentKey, content_id: ContentId, reason: str) -> bytes:
    """Seal the reason of a ballot under its first content's key; no reason gives b"".

    Raises:
        MisuseError: longer than the limit.
    """
    _limit("the reason", reason, LIMITS.reason)
    return _seal(key, REASON, content_id, _utf8("the reason", reason), "the reason") if reason else b""


def open_reason(key: ContentKey, content_id: ContentId, sealed: bytes) -> str:
    """Open a sealed reason. Raises UntrustedInputError."""
    if not sealed:
        return ""
    try:
        reason = _open(key, REASON, content_id, sealed).decode()
        _limit("the reason", reason, LIMITS.reason)
    except (UnicodeDecodeError, MisuseError) as e:
        raise UntrustedInputError(f"malformed reason: {e}") from e
    return reason


def _seal(key: bytes, label: bytes, content_id: bytes, raw: bytes, what: str) -> bytes:
    framed = len(raw).to_bytes(LENGTH_BYTES, "big") + raw if len(raw) < PADDING_STEPS[-1] else b""
    size = next((step for step in PADDING_STEPS if 0 < len(framed) <= step), None)
    if size is None:
        raise MisuseError(f"{what} come to {len(raw)} bytes: at most {PADDING_STEPS[-1] - LENGTH_BYTES} fit")
    return _sealer(key, label).seal(framed.ljust(size, b"\x00"), content_id)


def _open(key: bytes, label: bytes, content_id: bytes, sealed: bytes) -> bytes:
    if len(sealed) - SEAL_OVERHEAD not in PADDING_STEPS:
        raise UntrustedInputError("a sealed text has a length that does not occur")
    framed = _sealer(key, label).open(sealed, content_id)
    length = int.from_bytes(framed[:LENGTH_BYTES], "big")
    raw, padding = framed[LENGTH_BYTES : LENGTH_BYTES + length], framed[LENGTH_BYTES + length :]
    if len(raw) != length or padding.strip(b"\x00"):
        raise UntrustedInputError("a sealed text is padded wrongly")
    return raw


def _sealer(key: bytes, label: bytes) -> Sealer:
    return Sealer(derive_subkey(key, salt=SUBKEY_SALT, info=label), label)


def _limit(what: str, text: str | None, limit: int) -> None:
    size = len(_utf8(what, text)) if text is not None else 0
    if size > limit:
        raise MisuseError(f"{what} has {size} bytes: at most {limit} are allowed")


def _utf8(what: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise MisuseError(f"{what} is not valid Unicode text") from e
