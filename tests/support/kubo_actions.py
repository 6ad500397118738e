"""What chain tests ask of the kubo node inside a child process. Called through `do_run`."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from walytis_vault.adapters.walytis import unixfs, upstream


def name_files(runtime: Any, sizes: list[int]) -> list[list[str]]:
    """For a random file of each size: the content id that kubo gives it, and ours."""
    named = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            content = os.urandom(size)
            path = os.path.join(folder, "file")
            with open(path, "wb") as file:
                file.write(content)
            named.append([upstream.node().files.predict_cid(path), unixfs.cid_of(content)])
    return named


def pinned(runtime: Any) -> int:
    """How many pins kubo has."""
    return len(upstream.node().files.list_pins())


def invent_blocks(runtime: Any, chain_id: str, count: int) -> int:
    """Put blocks whose parents nobody has into a chain's waiting room, as a stranger would; how many wait then."""
    from walytis_vault.adapters.walytis import block_ids, intake
    from walytis_vault.adapters.walytis.fast_paths import intake_of
    from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork

    room = intake_of(upstream.core().get_blockchain(chain_id))
    assert room is not None
    intake.MAX_WAITING = 100  # type: ignore[misc]
    chain = MemoryNetwork(5, manual=True).replica("stranger")
    for number in range(count):
        ref = chain.append(b"invented %d" % number)
        parents = {block_ids.key_of_short(p): p for p in block_ids.parents_of(ref.block_id)}
        with room._lock:
            room._stage(ref.key, block_ids.cid_of(ref.block_id), b"file", parents)
    return room.waiting()
