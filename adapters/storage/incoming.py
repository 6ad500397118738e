"""A content that is read while it comes from peers: segments as they arrive, then from where they were stored.

When the transfer ends early, the reader asks for the next attempt and goes on at the same segment. Hands out
nothing that did not verify. Used by content_store.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from walytis_vault.adapters.crypto.ciphertext_root import segment_count
from walytis_vault.adapters.storage.ciphertext_writer import CiphertextWriter
from walytis_vault.adapters.storage.content_reader import SegmentSource
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import MisuseError, NotYetAvailableError
from walytis_vault.domain.ids import ContentId, Root

Incoming = Callable[[bool], CiphertextWriter | None]
"""The transfer that is under way, begun again if need be; None when the content is complete.

Waits within a bound of its own, and for holders that went away if told that reading has begun; raises VaultError
when it cannot be had."""


class IncomingSegments:
    """See `content_reader.Segments`. One thread reads; any thread may close."""

    ahead = False

    def __init__(self, state: StoreState, content_id: ContentId, root: Root, length: int, incoming: Incoming) -> None:
        """Take part in the transfer. Raises what `incoming` raises."""
        self._state, self._content_id, self._root, self._incoming = state, content_id, root, incoming
        self.length = length
        self._lock = threading.Lock()
        self._closed = False
        self._writer: CiphertextWriter | None = None
        self._stored: SegmentSource | None = None
        self._follow(begun=False)

    @property
    def count(self) -> int:
        """How many segments there are."""
        return segment_count(self.length)

    def segment(self, number: int) -> bytes:
        """Wait for a segment. Raises VaultError: it is damaged, forgotten, or does not come."""
        while not self._closed:
            if self._stored is not None:
                return self._stored.segment(number)
            assert self._writer is not None
            try:
                return self._writer.segment(number, given_up=lambda: self._closed)
            except NotYetAvailableError:
                self._state.check_not_gone(self._content_id)
                self._follow(begun=True)
        raise MisuseError("this content was closed")

    def close(self) -> None:
        """Let go of the transfer, which goes on without us. Idempotent."""
        with self._lock:
            self._closed = True
            self._release()

    def _follow(self, *, begun: bool) -> None:
        """Find out where the next segment comes from."""
        with self._lock:
            self._release()
        if self._closed:
            return
        writer = self._incoming(begun)
        stored = SegmentSource(self._state, self._content_id, self._root) if writer is None else None
        with self._lock:
            self._writer, self._stored = writer, stored
            if writer is not None:
                writer.begin_reading()
            if self._closed:
                self._release()

    def _release(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.end_reading()
        if self._stored is not None:
            self._stored.close()
