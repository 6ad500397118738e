"""The node's process of a member that lies when it is asked for contents: `VAULT_TEST_LIE` says how.

Everything else is honest, so that the others believe in it until it serves.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from walytis_vault.adapters.exchange.key_transfer import KeyAsk, seal_key
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.ids import ContentId, ContentKey
from walytis_vault.peers import protocol as p
from walytis_vault.peers.desk import PeerDesk
from walytis_vault.process import main

LIE_VARIABLE = "VAULT_TEST_LIE"
Answered = tuple[p.Reply, Sequence[bytes]]
Lie = Callable[[Answered, p.Request, Any], Answered]


def _change(payload: Sequence[bytes]) -> list[bytes]:
    return [part[:-1] + bytes([part[-1] ^ 1]) if part else part for part in payload]


def wrong_bytes(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """One bit of each piece of ciphertext is wrong."""
    reply, payload = honest
    return (reply, _change(payload)) if isinstance(request, p.Fetch | p.Segment) else honest


def noise(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """Random bytes of the right length."""
    reply, payload = honest
    if isinstance(request, p.Fetch | p.Segment):
        return reply, [secrets.token_bytes(len(part)) for part in payload]
    return honest


def cut(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """Pieces lack their last byte."""
    reply, payload = honest
    return (reply, [part[:-1] for part in payload]) if isinstance(request, p.Fetch | p.Segment) else honest


def nothing(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """It says that it has the content, and then sends none of it."""
    reply, _ = honest
    return (reply, []) if isinstance(request, p.Fetch | p.Segment) else honest


def wrong_hashes(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """The list of hashes fits its own bytes, not the root on the log."""
    reply, payload = honest
    if isinstance(request, p.Leaves):
        return reply, [secrets.token_bytes(len(part)) for part in payload]
    return wrong_bytes(honest, request, desk)


def _sealed(desk: Any, request: p.Fetch, key: ContentKey, nonce: bytes | None = None) -> bytes:
    """A key, sealed as the asker wants it, or for a request with another nonce."""
    asker: DeviceKeys = desk.asker
    ask = KeyAsk(
        vault_id=desk._vault_id, content_id=request.content_id, asker=asker.device, holder=desk._device,
        nonce=nonce or request.nonce, public=request.public,
    )  # fmt: skip
    return seal_key(key, ask, request.signature, asker, _Credulous())


class _Credulous:
    """Takes every signature for good."""

    def verify(self, *, ed25519: bytes, ml_dsa_65: bytes, signature: bytes, message: bytes) -> bool:
        return True


def wrong_key(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """A key that is sealed rightly, and is not the content's."""
    reply, payload = honest
    if isinstance(request, p.Fetch) and isinstance(reply, p.Fetched) and reply.sealed_key:
        sealed = _sealed(desk, request, ContentKey(secrets.token_bytes(32)))
        return msgspec.structs.replace(reply, sealed_key=sealed), payload
    return honest


def key_of_another_request(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """The right key, sealed for a request with another nonce."""
    reply, payload = honest
    if isinstance(request, p.Fetch) and isinstance(reply, p.Fetched) and reply.sealed_key:
        key = desk._store.need_key(ContentId(request.content_id))
        return msgspec.structs.replace(reply, sealed_key=_sealed(desk, request, key, secrets.token_bytes(16))), payload
    return honest


def another(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """Bytes and key of another content that it holds."""
    if not isinstance(request, p.Fetch | p.Segment | p.Leaves):
        return honest
    held = (c for c in desk._store.content_ids() if c != request.content_id and desk._store.has_bytes(c))
    other = max(held, key=lambda c: len(desk._store.leaf_hashes(c)))
    asked = msgspec.structs.replace(request, content_id=bytes(other))
    if isinstance(asked, p.Fetch):
        asked = msgspec.structs.replace(asked, public=b"")
    reply, payload = desk.honest(asked)
    if isinstance(request, p.Fetch) and request.public:
        reply = p.Fetched(state="here", sealed_key=_sealed(desk, request, desk._store.need_key(other)))
    return reply, payload


def silence(honest: Answered, request: p.Request, desk: Any) -> Answered:
    """It never answers."""
    if isinstance(request, p.Fetch | p.Segment | p.Leaves):
        threading.Event().wait(3600)
    return honest


LIES: dict[str, Lie] = {
    lie.__name__: lie
    for lie in (
        wrong_bytes,
        noise,
        cut,
        nothing,
        wrong_hashes,
        wrong_key,
        key_of_another_request,
        another,
        silence,
    )
}


def install(lie: Lie) -> None:
    """Put the lie between the desk and its answers, those of the bulk door included."""
    fetch, part, segment = PeerDesk._fetch, PeerDesk._part, PeerDesk.segment

    def lying(self: Any, device: DeviceKeys, request: Any) -> Answered:
        def honest(asked: Any) -> Answered:
            return fetch(self, device, asked) if isinstance(asked, p.Fetch) else part(self, device, asked)

        self.asker, self.honest = device, honest
        return lie(honest(request), request, self)

    def lying_segment(self: Any, key: bytes, content_id: ContentId, number: int) -> bytes:
        device = self._network.devices_of(key)[0]
        segment(self, key, content_id, number)
        _, payload = lying(self, device, p.Segment(content_id=bytes(content_id), number=number))
        return payload[0] if payload else b""

    PeerDesk._fetch = PeerDesk._part = lying  # type: ignore[method-assign]
    PeerDesk.segment = lying_segment  # type: ignore[method-assign]


if __name__ == "__main__":
    install(LIES[os.environ[LIE_VARIABLE]])
    main()
