"""Where other members' nodes were last seen: a small file of multiaddrs by peer id.

libp2p proves who answers there, so a wrong entry costs a failed dial and nothing else: what others say never goes into
the configuration of the node below us, which it could keep from starting.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from walytis_vault.adapters.storage.atomic_file import read_file, replace_file
from walytis_vault.domain.errors import StorageError, VaultError
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.ports import FileSystem
from walytis_vault.peers.protocol import Addresses, Known

ADDRESSES_KEPT: Final = 8
"""For each peer (a count)."""
FILE_LIMIT: Final = LIMITS.members * (ADDRESSES_KEPT + 1) * 1024
"""Bytes of the file: an address of 256 characters may take four bytes for each."""
_LOOPBACK: Final = ("/ip4/127.", "/ip6/::1/")
_log = logging.getLogger(__name__)
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
    """Any thread may call. Whoever was heard of last comes first; when it is full, the last one goes."""

    def __init__(self, path: Path, fs: FileSystem) -> None:
        """Read the file; a damaged one counts as empty, since addresses are found again."""
        self._path, self._fs = path, fs
        self._lock = threading.Lock()
        try:
            raw = read_file(fs, path, limit=FILE_LIMIT)
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
        """Remember where a peer is; what others say counts only when nothing is known, and while there is room."""
        given = tuple(a.partition("/p2p/")[0] for a in addresses if a.startswith("/") and len(a) <= 256)
        given = given[:ADDRESSES_KEPT]
        with self._lock:
            old = self._known.get(peer_id, ())
            if not given or (hearsay and (old or len(self._known) >= LIMITS.members)):
                return
            others = [known for known in self._known.items() if known[0] != peer_id]
            self._known = dict([(peer_id, given), *others[: LIMITS.members - 1]])
            if given == old:
                return
            try:
                replace_file(self._fs, self._path, msgspec.json.encode(self._known))
            except StorageError as e:
                # Where others are is learned again after a restart: no reason to lose them now.
                _log.warning("addresses of other nodes cannot be written down: %s", e)
