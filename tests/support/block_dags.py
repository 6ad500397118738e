"""Random DAGs of blocks with real Walytis ids, for property tests."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from walytis_vault.adapters.walytis import block_ids

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
Shape = list[list[int]]
"""For each block the numbers of its parents, all smaller than its own."""


@st.composite
def shapes(draw: st.DrawFn, max_blocks: int = 24) -> Shape:
    """Shapes with forks, merges, diamonds, several roots and shared ancestors."""
    count = draw(st.integers(1, max_blocks))
    shape: Shape = [[]]
    for number in range(1, count):
        recent = st.integers(max(0, number - 4), number - 1)
        anywhere = st.integers(0, number - 1)
        shape.append(sorted(set(draw(st.lists(st.one_of(recent, anywhere), min_size=0, max_size=4)))))
    return shape


def long_ids(shape: Shape, seed: int = 0) -> list[bytes]:
    """Ids as Walytis makes them, deterministic."""
    shorts: list[bytes] = []
    made: list[bytes] = []
    for number, parents in enumerate(shape):
        digest = hashlib.sha512(b"%d/%d" % (seed, number)).digest()
        listed = sorted(shorts[parent] for parent in parents)
        short = b"\0\0".join(
            [
                b"\4\1\6\1\x19\1",
                b"Qm%044d" % number,
                b"creator",
                block_ids.timestamp_field(START + timedelta(seconds=number // 1000, microseconds=number % 1000)),
                b"topic",
                block_ids.to_base255(100 + number),
                b"sha512",
                block_ids.hash_field(digest),
                block_ids.to_base255(len(listed)),
                b"sha512",
                block_ids.hash_field(hashlib.sha512(digest).digest()),
            ]
        )
        shorts.append(short)
        made.append(short + b"\0\0\0\0" + b"\0\0\0".join(listed))
    return made


class OriginalChain:
    """What upstream's `remove_ancestors` needs of a chain: a name and a look-up of every block."""

    name = "original"

    def __init__(self, ids: list[bytes]) -> None:
        self._by_short = {block_ids.short_of(long_id): bytearray(long_id) for long_id in ids}

    def find_block(self, block_id: Any) -> Any:
        """Upstream's look-up on a fully known chain."""
        return self._by_short[block_ids.short_of(bytes(block_id))]
