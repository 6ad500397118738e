"""What somebody tries at a member's door who knows the chain and holds no key: run in a `WalytisChild`."""

from __future__ import annotations

from typing import Any

import msgspec
import zmq

from walytis_vault.adapters.exchange.tunnels import PeerTunnels
from walytis_vault.bus.security import BusKeys, make_keys
from walytis_vault.domain.errors import VaultError
from walytis_vault.peers import protocol as p
from walytis_vault.peers.invitations import door_keys
from walytis_vault.peers.link import PeerLink

_dialled: dict[tuple[str, str], int] = {}


def _port(runtime: Any, vault_id: str, peer_id: str) -> int:
    """A local port that leads to a member's door."""
    if (vault_id, peer_id) not in _dialled:
        _dialled[vault_id, peer_id] = PeerTunnels(runtime.tunnels(), vault_id).dial(peer_id)
    return _dialled[vault_id, peer_id]


def ask(
    runtime: Any, vault_id: str, peer_id: str, server_key: bytes, request: bytes, secret: bytes | None
) -> tuple[str, list[bytes]]:
    """Ask with fresh keys, or with those of an invitation's secret. Returns "answer" or the error's code."""
    keys = make_keys()
    if secret is not None:
        public, private = door_keys(secret)
        keys = BusKeys(public=public.decode(), secret=private.decode())
    link = PeerLink(_port(runtime, vault_id, peer_id), server_key=server_key, keys=keys)
    try:
        _, parts = link.ask(msgspec.msgpack.decode(request, type=p.Request), timeout=3.0)
        return "answer", parts
    except VaultError as e:
        return e.code, []
    finally:
        link.close()


def plain(runtime: Any, vault_id: str, peer_id: str, request: bytes) -> bool:
    """Whether the door answers a connection without encryption."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.rcvtimeo = 0, 2000
    try:
        socket.connect(f"tcp://127.0.0.1:{_port(runtime, vault_id, peer_id)}")
        socket.send_multipart([p.MAGIC + bytes(p.NONCE_BYTES), request])
        socket.recv_multipart()
        return True
    except zmq.Again:
        return False
    finally:
        context.destroy(linger=0)
