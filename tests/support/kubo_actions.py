"""What chain tests ask of the kubo node inside a child process. Called through `do_run`."""

from __future__ import annotations

import importlib
import os
import tempfile
from datetime import UTC, datetime
from typing import Any

import msgspec

from walytis_vault.adapters.walytis import block_ids, unixfs, upstream
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.ports import BlockRef


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
    """Send blocks whose parents nobody has, as a stranger would; how many wait then in a room for 100."""
    from walytis_vault.adapters.walytis import intake
    from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork

    intake.MAX_WAITING = 100  # type: ignore[misc]
    chain, upstreams = runtime.open_chain(chain_id), upstream.core().get_blockchain(chain_id)
    nowhere = MemoryNetwork(5, manual=True).replica("stranger")
    parents = [_short(nowhere.append(b"invented %d" % number)) for number in range(2)]
    for number in range(count):
        short, data = stranger_block(upstreams, parents, b"child %d" % number)
        assert not chain.take_in(short, data)
    waiting: int = chain.waiting()
    return waiting


def flood(runtime: Any, chain_id: str, count: int) -> dict[str, Any]:
    """Have a stranger put siblings beside the last block, then append; what came of it, by upstream's rules too."""
    chain, upstreams = runtime.open_chain(chain_id), upstream.core().get_blockchain(chain_id)
    (tip,) = chain.leaves()
    for number in range(count):
        cid, data = stranger_block(upstreams, [_short(tip), _short(next(iter(chain.blocks())))], b"junk %d" % number)
        assert chain.take_in(cid, data)
    refs = [chain.append(b"honest %d" % number) for number in range(3)]
    told = [block_ids.key_of(bytes(long_id)) for long_id in upstreams.current_endblocks]
    return {
        "sizes": [len(ref.block_id) for ref in refs],
        "judged": [upstreams.check_blocks_parents(_parents(ref)) for ref in refs],
        "told": told == [refs[-1].key],
        "leaves": len(chain.leaves()),
        "blocks": sum(1 for _ in chain.blocks()),
        "found": all(chain.find(ref.key) == ref for ref in refs),
    }


def spread_siblings(runtime: Any, chain_id: str, count: int) -> None:
    """Have a stranger put siblings beside the first leaf and tell every peer of each, as for blocks of its own."""
    chain, upstreams = runtime.open_chain(chain_id), upstream.core().get_blockchain(chain_id)
    parents = [_short(chain.leaves()[0]), _short(next(iter(chain.blocks())))]
    for number in range(count):
        short, data = stranger_block(upstreams, parents, b"sibling %d" % number)
        assert chain.take_in(short, data)
        ref = chain.find(block_ids.key_of_short(short))
        message = {"message": "New block!", "block_id": upstream.encode_bytes(ref.block_id)}
        upstream.node().pubsub.publish(chain_id, msgspec.json.encode(message))


def overlong(runtime: Any, chain_id: str, count: int) -> str:
    """Have a stranger send a block that stands on very many; the error's code."""
    chain, upstreams = runtime.open_chain(chain_id), upstream.core().get_blockchain(chain_id)
    (tip,) = chain.leaves()
    genesis = _short(next(iter(chain.blocks())))
    shorts = []
    for number in range(count):
        cid, data = stranger_block(upstreams, [_short(tip), genesis], b"sibling %d" % number)
        assert chain.take_in(cid, data)
    shorts = [_short(leaf) for leaf in chain.leaves()]
    cid, data = stranger_block(upstreams, shorts, b"on all of them")
    try:
        chain.take_in(cid, data)
    except UntrustedInputError as e:
        return e.code
    return "taken in"


def stranger_block(chain: Any, parents: list[bytes], content: bytes) -> tuple[bytes, bytes]:
    """A block of upstream's making that stands on any parents: its short id and its file."""
    version = importlib.import_module("walytis_beta_tools.versions").WALYTIS_BETA_CORE_VERSION
    block = importlib.import_module("walytis_beta.block_networking").Block.from_metadata(
        creator_id=b"stranger", creation_time=datetime.now(UTC), topics=["wv1", chain.blockchain_id],
        content_length=len(content), content=bytearray(content), n_parents=len(parents),
        parents=sorted(bytearray(p) for p in parents), blockchain_version=version, ipfs_cid="",
        content_hash_algorithm="", content_hash=bytearray(), parents_hash_algorithm="", parents_hash=bytearray(),
        file_data=bytearray(),
    )  # fmt: skip
    block.generate_content_hash()
    block.generate_parents_hash()
    block.generate_file_data()
    block._ipfs_cid = unixfs.cid_of(bytes(block.file_data))
    block.generate_id()
    return bytes(block.short_id), bytes(block.file_data)


def _short(ref: BlockRef) -> bytes:
    return block_ids.short_of(ref.block_id)


def _parents(ref: BlockRef) -> list[bytearray]:
    return [bytearray(short) for short in block_ids.parents_of(ref.block_id)]
