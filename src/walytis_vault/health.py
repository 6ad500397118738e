"""How the node is, for `status` and for metrics: what it is busy with, what is wrong, what it takes on disk.

Numbers and our own sentences only: no content and no names.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.home import Home

CHAIN_LOOK_S: Final = 600.0
"""Seconds for which the size of the chain's folders is believed: they hold two files for each block."""
LOW_SPACE: Final = 256 << 20
"""Free bytes below which health says so."""


class Health:
    """Knows where to look. Any thread may ask."""

    def __init__(
        self,
        home: Home,
        log: VaultLog,
        store: DiskContentStore,
        *,
        eraser_error: Callable[[], str | None],
        more: Callable[[], dict[str, Any]],
    ) -> None:
        """Nothing is looked at before somebody asks.

        Args:
            more: what bus and peers say about themselves.
        """
        self._home, self._log, self._store = home, log, store
        self._eraser_error, self._more = eraser_error, more
        self._chain_bytes: int | None = None
        self._chain_at = -CHAIN_LOOK_S
        self._measuring = threading.Lock()

    def details(self) -> dict[str, Any]:
        """Everything but the views."""
        return {
            "store": msgspec.structs.asdict(self._store.usage()),
            "disk": self.disk(),
            "waiting_appends": self._log.writer.waiting,
            **self._more(),
        }

    def errors(self) -> dict[str, str]:
        """What went wrong last, by part; empty when all is well."""
        found = {
            "reconciler": self._log.reconciler.last_error,
            "writer": self._log.writer.last_error,
            "eraser": self._eraser_error(),
        }
        return {part: str(error) for part, error in found.items() if error}

    def disk(self) -> dict[str, int | None]:
        """Bytes: free on the disk, and taken by each part. `chain` is None until it was first measured."""
        usage = os.statvfs(self._home.path)
        stored = self._store.usage()
        return {
            "free": usage.f_bavail * usage.f_frsize,
            "store": stored.blob_bytes + stored.pack_bytes,
            "log": _database_bytes(self._home.log_database),
            "views": _database_bytes(self._home.view_database),
            "chain": self._chain(),
        }

    def problems(self, views: Mapping[str, str]) -> list[str]:
        """Sentences for people; empty when all is well.

        Args:
            views: name -> error, of the views that have one.
        """
        free = self.disk()["free"] or 0
        low = [f"only {free >> 20} MiB are free on the disk"] if free < LOW_SPACE else []
        lost = self._store.lost()
        if lost:
            low.append(
                f"the disk lost bytes or keys of {'one content' if lost == 1 else f'{lost} contents'}:"
                " `audit --read-data` names them, and fetches them from other members' nodes"
            )
        parts = [f"{part}: {error}" for part, error in self.errors().items()]
        return [*low, *parts, *(f"view {name}: {error}" for name, error in views.items())]

    def _chain(self) -> int | None:
        now = time.monotonic()
        if now - self._chain_at >= CHAIN_LOOK_S and self._measuring.acquire(blocking=False):
            self._chain_at = now
            threading.Thread(target=self._measure, name="chain-size", daemon=True).start()
        return self._chain_bytes

    def _measure(self) -> None:
        try:
            self._chain_bytes = sum(_tree_bytes(self._home.path / name) for name in ("walytis", "ipfs"))
        finally:
            self._measuring.release()


def _database_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in (path, path.with_name(path.name + "-wal")) if f.exists())


def _tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile does not count."""
    total = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total
