"""A content on its way into a client's memory is there once, not twice."""

from __future__ import annotations

import tracemalloc
from typing import Any, cast

from walytis_vault.bus.session import receive

PIECE = bytes(range(256)) * 4096
PIECES = 32


class Download:
    """A stream of fresh pieces."""

    length = PIECES * len(PIECE)

    def __init__(self) -> None:
        self.left, self.taken = PIECES, 0

    def start(self) -> None:
        """Nothing to begin."""

    def next(self) -> memoryview | None:
        """The next piece, in memory of its own."""
        self.left -= 1
        return memoryview(bytearray(PIECE)) if self.left >= 0 else None

    def consumed(self, size: int) -> None:
        """Count."""
        self.taken += size

    def cancel(self) -> None:
        """Nothing to end."""


def test_a_large_content_takes_its_own_size_of_memory() -> None:
    """While a content is received, no second copy of it is made."""
    download = Download()
    tracemalloc.start()
    try:
        whole = receive(cast("Any", download), None, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert whole == PIECE * PIECES
    assert download.taken == download.length
    assert peak < 1.5 * download.length
