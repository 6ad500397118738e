"""libp2p stream tunnels between the peer doors of two nodes.

A tunnel's local ports are open to every user of this machine, and whoever knows the name may dial: nothing may
rest on the tunnel itself, the door above it authenticates both sides (security.md U10). Upstream's errors end here.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Final, Protocol

from walytis_vault.domain.errors import TransportError

LOOPBACK: Final = "127.0.0.1"
ATTEMPTS: Final = 5
PROTOCOL: Final = "walytis-vault/"
BULK: Final = "/bulk"
"""Ends the name of the bulk door's tunnel."""


class Tunnels(Protocol):
    """What upstream offers."""

    def open_listener(self, name: str, target_addr: int | str) -> None:
        """Forward streams of `name` to a local port."""
        ...

    def open_sender(self, name: str, listen_addr: int | str, target_peer_id: str) -> None:
        """Forward a local port to `name` on a peer."""
        ...


class PeerTunnels:
    """The tunnels of one vault. Any thread may call."""

    def __init__(self, tunnels: Tunnels, vault_id: str) -> None:
        """Bind to the running node."""
        self._tunnels = tunnels
        self._name = PROTOCOL + vault_id
        self._ports: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def expose(self, port: int, door: str = "") -> None:
        """Let peers reach a door on this local port. Raises TransportError.

        Args:
            door: "" for the peer door, `BULK` for the bulk door.
        """
        try:
            self._tunnels.open_listener(self._name + door, _address(port))
        except Exception as e:  # upstream raises bare Exceptions
            raise TransportError(f"peers cannot be let in: {e}") from e

    def dial(self, peer_id: str, door: str = "") -> int:
        """The local port that leads to a peer's door; the connection itself is made when somebody uses it.

        Raises:
            TransportError: no port could be had.
        """
        with self._lock:
            if (peer_id, door) in self._ports:
                return self._ports[peer_id, door]
            problem = ""
            for _ in range(ATTEMPTS):
                port = free_port()
                try:
                    self._tunnels.open_sender(self._name + door, _address(port), peer_id)
                except Exception as e:  # taken meanwhile, or the peer id is none
                    problem = str(e)
                    continue
                self._ports[peer_id, door] = port
                return port
        raise TransportError(f"no tunnel to peer {peer_id[:64]!r}: {problem}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _address(port: int) -> str:
    return f"/ip4/{LOOPBACK}/tcp/{port}"
