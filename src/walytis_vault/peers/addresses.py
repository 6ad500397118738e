"""Where other members' nodes were last seen: a small file of multiaddrs by peer id.

libp2p proves who answers there, so a wrong entry costs a failed dial and nothing else: what others say never goes into
the configuration of the node below us, which it could keep from starting.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from walytis_vault.adapters.storage.atomic_file import read_file, replace_file
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.ports import FileSystem
from walytis_vault.peers.protocol import Addresses, Known

ADDRESSES_KEPT: Final = 8
"""For each peer (a count)."""
_LOOPBACK: Final = ("/ip4/127.", "/ip6/::1/")
_decoder = msgspec.json.Decoder(Known)


def own_addresses(addresses: Iterable[str], mode: str) -> Addresses:
    """Where others reach this node: without /p2p/…, each once, the most useful ones first.

    Args:
        addresses: all that the node listens on.
        mode: on "loopback" only those of 127.0.0.1 count; else they come last, for other nodes on this machine.
    """
    plain = dict.fromkeys(a.partition("/p2p/")[0] for a in addresses)
    if mode == "loopback":
        return tuple(a for a in plain if a.startswith("/ip4/127."))[:ADDRESSES_KEPT]
    return tuple(sorted(plain, key=lambda a: a.startswith(_LOOPBACK)))[:ADDRESSES_KEPT]


class AddressBook:
    """Any thread may call."""

    def __init__(self, path: Path, fs: FileSystem) -> None:
        """Read the file; a damaged one counts as empty, since addresses are found again."""
        self._path, self._fs = path, fs
        self._lock = threading.Lock()
        try:
            raw = read_file(fs, path, limit=1 << 20)
            self._known: dict[str, Addresses] = dict(_decoder.decode(raw)) if raw else {}
        except (VaultError, msgspec.MsgspecError, UnicodeDecodeError):
            self._known = {}

    def of(self, peer_id: str) -> Addresses:
        """Multiaddrs without /p2p/…; the last one that the peer itself gave first."""
        return self._known.get(peer_id, ())

    def known(self) -> dict[str, Addresses]:
        """All of them."""
        return dict(self._known)

    def learn(self, peer_id: str, addresses: Addresses, *, hearsay: bool = False) -> None:
        """Remember where a peer is; what others say counts only when nothing is known."""
        given = tuple(a.partition("/p2p/")[0] for a in addresses if a.startswith("/") and len(a) <= 256)
        given = given[:ADDRESSES_KEPT]
        with self._lock:
            old = self._known.get(peer_id, ())
            if not given or given == old or (hearsay and old) or len(self._known) >= LIMITS.members:
                return
            self._known = {**self._known, peer_id: given}
            replace_file(self._fs, self._path, msgspec.json.encode(self._known))
