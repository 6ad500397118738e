"""The node's table of admitted clients, kept in step with the folder that lists them.

Reads the folder again when it changed. Used by the door's thread only.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from walytis_vault.bus.security import ClientEntry, list_clients
from walytis_vault.domain.errors import StorageError

_SETTLED_NS = 100_000_000


class ClientTable:
    """Public key -> client.

    Args:
        folder: the home's `bus` folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, ClientEntry] = {}
        self._stamp = -1
        self.refresh()

    def refresh(self) -> bool:
        """Read the folder if it changed; True if it was read."""
        try:
            stamp = os.stat(self._folder / "clients").st_mtime_ns
        except OSError:
            stamp = 0
        if stamp == self._stamp:
            return False
        unread: set[str] = set()
        try:
            entries = {e.public_key: e for e in list_clients(self._folder, unread)} if stamp else {}
        except StorageError:
            entries, stamp = {}, time.time_ns()  # whoever cannot be looked up is not admitted
        # Whom a lack of descriptors hides was not revoked: as before, until the file can be read.
        entries |= {e.public_key: e for e in self._entries.values() if e.name in unread}
        self._entries = entries
        # Two changes within one tick of the file system's clock have one time: look again until it is past.
        self._stamp = stamp if time.time_ns() - stamp > _SETTLED_NS and not unread else -1
        return True

    def by_key(self, public_key: str) -> ClientEntry | None:
        """The client with this public key (Z85), if it is admitted now."""
        return self._entries.get(public_key)
