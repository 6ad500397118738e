"""A content on its way into a client's memory is there once, not twice."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
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

    def next(self, room: Callable[[int], memoryview]) -> memoryview | None:
        """The next piece, where there is room for it."""
        self.left -= 1
        if self.left < 0:
            return None
        piece = room(len(PIECE))
        piece[:] = PIECE
        return piece

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
