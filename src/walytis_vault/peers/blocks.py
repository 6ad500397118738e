"""Block files of the vault's chain, asked for and given from door to door.

Kubo's way needs memory for each block that it never gives back; a member's door needs none. Few members are asked, each
for a short time, and what they send is held against the content id: whoever gives nothing delays Kubo's turn only.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from walytis_vault.adapters.walytis import block_ids, unixfs
from walytis_vault.domain.errors import TimedOutError, VaultError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.peers import protocol as p
from walytis_vault.peers.link import PeerLink

ASKED: Final = 3
"""Devices that are asked for one block (a count): strangers can name blocks that nobody has."""
ALL_S: Final = 1.5
"""Seconds for all of them; links look every quarter of a second for what is overdue."""
EACH_S: Final = 1.0
SLOW_S: Final = 20.0
"""How long a device that did not answer in time is left alone."""

Links = Sequence[tuple[DeviceKeys, PeerLink]]
BlockFile = Callable[[str], bytes | None]
"""Content id -> the block's whole file, None when it is not here."""


def files_for(cids: Sequence[str], block_file: BlockFile) -> list[bytes]:
    """The files that are here, as many as fit a reply; one that no frame can hold is left to Kubo.

    Raises:
        UntrustedInputError: something is no content id.
    """
    files, size = list[bytes](), 0
    for cid in [block_ids.checked_cid(cid) for cid in cids]:
        data = block_file(cid)
        if data is None or len(data) > p.PART_LIMIT:
            continue
        size += len(data)
        if files and size > p.BATCH_BYTES:
            break
        files.append(data)
    return files


class MemberBlocks:
    """Asks the connected devices: whoever made the block first, then who gave the last one. Any thread may call."""

    def __init__(self, links: Callable[[], Links]) -> None:
        """Bind to who is connected now."""
        self._links = links
        self._lock = threading.Lock()
        self._slow: dict[str, float] = {}
        self._gave = ""

    def __call__(self, cid: str, maker: str) -> bytes | None:
        """The block's file, or None when none of those asked gave it in time.

        Args:
            cid: a content id.
            maker: a peer id.
        """
        until = time.monotonic() + ALL_S
        for keys, link in self._asked(maker):
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                _, payload = link.ask(p.Blocks(cids=(cid,)), timeout=min(left, EACH_S))
            except TimedOutError:
                with self._lock:
                    self._slow[keys.device] = time.monotonic() + SLOW_S
                continue
            except VaultError:  # gone, busy, or of a version that does not know the question
                continue
            if payload and len(payload[0]) <= unixfs.MAX_FILE_BYTES and unixfs.cid_of(payload[0]) == cid:
                self._gave = keys.device
                return payload[0]
        return None

    def _asked(self, maker: str) -> Links:
        now = time.monotonic()
        with self._lock:
            self._slow = {device: until for device, until in self._slow.items() if until > now}
            there = [(keys, link) for keys, link in self._links() if keys.device not in self._slow]
        random.shuffle(there)
        there.sort(key=lambda found: (found[0].peer_id != maker, found[0].device != self._gave))
        return there[:ASKED]
