"""What makes a request the same request when it is sent again.

In two parts, since they are kept differently: what the record says anyway, and what it holds sealed. Exact sizes
count as sealed. Spec: docs/bus-protocol.md, "Once".
"""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from walytis_vault.bus import calls as c
from walytis_vault.bus.messages import PublishOptions, RequestKey
from walytis_vault.bus.protocol import Header, encode


def request_key(client: str, message: Header, call: c.AnyCall) -> RequestKey:
    """What identifies the effect of a request of the client key of this name."""
    told, sealed = call, b""
    if isinstance(call, c.PublishCall):
        # A span from now is another moment in each repetition of the call: it does not make another request.
        # Nor does the way that the data takes.
        expires = None if call.options.expires_ms is None else 0
        whole = replace(call, bulk=False, options=replace(call.options, expires_ms=expires))
        told = replace(whole, size=None, options=PublishOptions(revises=call.options.revises, expires_ms=expires))
        sealed = _digest(encode(whole), message.data)
    elif isinstance(call, c.ForgetCall | c.RefuseCall) and call.reason:
        told = replace(call, reason="sealed")
        sealed = _digest(call.reason.encode())
    return RequestKey(client=client, request_id=message.id, digest=_digest(encode(told)), sealed=sealed)


def _digest(body: bytes, data: bytes | memoryview = b"") -> bytes:
    digest = hashlib.sha256(len(body).to_bytes(8, "big") + body)
    digest.update(data)
    return digest.digest()
