"""The client's side of an export: asks for the pages of a bundle, and writes them to a path or a file.

A path shows the whole bundle or nothing. Memory holds one page. It believes nothing: `verify` does the checking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from walytis_vault.bus import requests as r
from walytis_vault.bus.files import Target
from walytis_vault.bus.messages import Exported
from walytis_vault.bus.session import Session
from walytis_vault.domain.errors import TransportError

PAGE_S: Final = 600.0
"""Seconds that one page may take; the last one reads the whole log."""


class Export:
    """One export. `run` blocks its thread; `cancel` may come from any other."""

    def __init__(self, session: Session, to: object, progress: Callable[[int, int | None], None] | None) -> None:
        """`progress` is called with the bytes written so far, and None."""
        self._session, self._to, self._progress = session, to, progress
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End it after the page under way; nothing is left behind."""
        self._cancelled.set()

    def run(self) -> Exported:
        """Write the bundle.

        Raises:
            StorageError: it cannot be written; no partial file remains at its path. TransportError.
        """
        target = Target(self._to)
        size, cursor = 0, None
        try:
            while True:
                page = self._session.call(r.export(cursor), timeout=PAGE_S).result()
                if self._cancelled.is_set() or not page.lines:
                    raise TransportError("the export was ended before it was complete: repeat it")
                target.write(memoryview(page.lines))
                size += len(page.lines)
                if self._progress is not None:
                    self._progress(size, None)
                cursor = page.cursor
                if cursor is None:
                    break
            target.finish()
        except BaseException:
            target.discard()
            raise
        return Exported(vault_id=page.vault_id, root=page.root, digest=page.digest, batches=page.batches, size=size)
