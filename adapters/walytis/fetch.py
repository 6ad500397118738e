"""Gets block files from peers by content id, with an end to each wait.

Whoever `ask_first` names is asked first, for kubo keeps some 55 KiB of memory for each download until the process
ends. Kubo's download cannot be cancelled and waits for ever, so each runs in a thread of its own, few at a time; who
waits longer than a timeout gets an error while the download goes on for the next one who asks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from walytis_vault.adapters.walytis import block_ids, unixfs, upstream
from walytis_vault.adapters.walytis.block_store import BlockStore
from walytis_vault.domain.errors import NotYetAvailableError, UntrustedInputError

MAX_DOWNLOADS: Final = 16
"""At once, among those that began less than `STALE_AFTER` seconds ago."""
STALE_AFTER: Final = 60.0
MAX_STALE: Final = 256
"""Downloads of blocks that nobody seems to have: each waits in kubo until the process ends or the block appears."""

Source = Callable[[str, str], bytes | None]
"""(content id, peer id of the node that made the block or "") -> the file, or None; within about two seconds."""


class _Download:
    """One download that several may wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.began = time.monotonic()
        self.data: bytes | None = None
        self.error = "no peer delivered it"


class Fetcher:
    """Downloads. Any thread may call."""

    def __init__(self, folder: Path) -> None:
        """Name the folder for half-finished downloads; its files are removed."""
        self._folder = folder
        for left in folder.glob("fetch-*"):
            with contextlib.suppress(OSError):
                left.unlink()
        self._store: BlockStore | None = None
        self._lock = threading.Lock()
        self._running: dict[str, _Download] = {}
        self._source: Source | None = None
        self.from_members = self.from_kubo = 0
        """Blocks that came each way since the start."""

    def ask_first(self, source: Source) -> None:
        """From now on ask here before kubo. What it gives is believed no more than what kubo gives."""
        self._source = source

    def use_store(self, store: BlockStore) -> None:
        """From now on blocks can be put where IPFS serves them from."""
        self._store = store

    def keep(self, file_data: bytes) -> None:
        """Have IPFS serve a block that did not come through it."""
        if self._store is not None and not self._store.has(file_data):
            self._store.put(file_data)

    def fetch(self, cid: str, timeout: float, maker: str = "") -> bytes:
        """The file with this content id.

        Args:
            cid: an IPFS content id.
            timeout: seconds.
            maker: the peer id that the block's id names, as a hint where it may be.
        Raises:
            NotYetAvailableError: it did not come in time, or too many others are being waited for.
            UntrustedInputError: not a content id, or larger than a block can be.
        """
        cid = block_ids.checked_cid(cid)
        deadline = time.monotonic() + timeout
        download = self._start(cid, maker)
        if not download.done.wait(max(0.0, deadline - time.monotonic())):
            raise NotYetAvailableError(f"no peer delivered block {cid} within {timeout:g} s: try again later")
        if download.data is None:
            raise NotYetAvailableError(f"block {cid} could not be fetched ({download.error}): try again later")
        return download.data

    def _start(self, cid: str, maker: str) -> _Download:
        with self._lock:
            running = self._running.get(cid)
            if running is not None:
                return running
            fresh = sum(time.monotonic() - d.began < STALE_AFTER for d in self._running.values())
            if fresh >= MAX_DOWNLOADS or len(self._running) >= MAX_STALE:
                raise NotYetAvailableError("too many blocks are being waited for: try again later")
            download = self._running[cid] = _Download()
        threading.Thread(target=self._run, args=(cid, maker, download), name="fetch-block", daemon=True).start()
        return download

    def _run(self, cid: str, maker: str, download: _Download) -> None:
        try:
            download.data = self._ask_members(cid, maker) or self._ask_kubo(cid)
        except Exception as e:  # upstream raises bare Exceptions
            download.error = str(e)
        finally:
            with self._lock:
                self._running.pop(cid, None)
            download.done.set()

    def _ask_members(self, cid: str, maker: str) -> bytes | None:
        """The file from the source; None when it does not give it, or when IPFS could not be given it."""
        if self._source is None or self._store is None:
            return None
        try:
            data = self._source(cid, maker)
            if data is None or len(data) > unixfs.MAX_FILE_BYTES or unixfs.cid_of(data) != cid:
                return None
            self.keep(data)
        except Exception as e:  # whatever is wrong with this way, kubo's remains
            upstream.logger.debug("no member gave block %s: %s", cid, e)
            return None
        with self._lock:
            self.from_members += 1
        return data

    def _ask_kubo(self, cid: str) -> bytes | None:
        path = self._folder / f"fetch-{cid}"
        try:
            if not upstream.node().files.download(cid, str(path)):
                return None
            if path.stat().st_size > unixfs.MAX_FILE_BYTES:
                raise UntrustedInputError("larger than a block can be")
            data = path.read_bytes()
            if unixfs.cid_of(data) != cid:
                raise UntrustedInputError("stored in another way than blocks are")
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        with self._lock:
            self.from_kubo += 1
        return data
