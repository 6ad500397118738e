"""Keeps the memory of finished buffers for the next ones.

glibc gives a buffer of more than 128 KiB back to the kernel when it is freed, and a transfer then spends half its
time on fresh pages. It stops doing so for sizes up to that of the largest such buffer that it has seen freed
(mallopt(3), "dynamic mmap threshold"): so free one once. Its pages are never touched. Elsewhere it does nothing.
"""

from __future__ import annotations

_LARGEST = 31 << 20
"""Bytes; glibc takes no notice of more than 32 MiB."""


def steady_heap() -> None:
    """Show glibc one large buffer. Costs some microseconds."""
    buffer = bytes(_LARGEST)
    del buffer
