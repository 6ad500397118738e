"""Formats that we write or check ourselves: IPFS nodes, block ids and files, leaf memory; held against upstream's."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import upstream_originals
from walytis_vault.adapters.walytis import block_ids, gossip, unixfs
from walytis_vault.adapters.walytis.block_store import BlockStore
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.domain.errors import MisuseError, UntrustedInputError

KNOWN_CIDS = {
    b"": "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH",
    b"hello\n": "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN",
    b"hello world": "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
}
"""As `ipfs add` names them everywhere."""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Upstream's number encodings and block model."""
    upstream_originals.load(Path(tmp_path_factory.mktemp("log")))
    return importlib.import_module("brenthy_tools_beta.utils")


@pytest.mark.parametrize(("content", "cid"), KNOWN_CIDS.items())
def test_content_ids_are_those_of_ipfs(content: bytes, cid: str) -> None:
    """Small files get the content ids that IPFS gives them."""
    assert unixfs.cid_of(content) == cid


def test_large_files_have_one_root_over_chunks() -> None:
    """A file over 256 KiB becomes chunks and a root; over what a root holds here it is refused."""
    nodes = unixfs.nodes_of(bytes(unixfs.CHUNK_BYTES + 1))
    assert len(nodes) == 3
    assert nodes[0].multihash in nodes[-1].data
    assert nodes[1].multihash in nodes[-1].data
    with pytest.raises(MisuseError):
        unixfs.nodes_of(bytes(unixfs.MAX_FILE_BYTES + 1))


@pytest.mark.parametrize("size", [0, 1, 5000, unixfs.CHUNK_BYTES, unixfs.CHUNK_BYTES + 1, unixfs.MAX_FILE_BYTES])
def test_files_come_back_from_their_nodes(size: int) -> None:
    """A file is put together again from its nodes; with any chunk changed or cut it is refused."""
    content = bytes(number % 251 for number in range(size))
    nodes = {node.multihash: node.data for node in unixfs.nodes_of(content)}
    cid = unixfs.cid_of(content)
    assert unixfs.text_of(unixfs.multihash_of(cid)) == cid
    assert unixfs.file_of(cid, nodes.__getitem__) == content
    for name in list(nodes)[: max(1, len(nodes) - 1)]:
        with pytest.raises(UntrustedInputError):
            unixfs.file_of(cid, {**nodes, name: nodes[name][:-1] + b"\xff"}.__getitem__)


@given(junk=st.binary(max_size=400))
def test_junk_nodes_are_our_error(junk: bytes) -> None:
    """Any bytes in the place of a node give our error."""
    with pytest.raises(UntrustedInputError):
        unixfs.file_of(unixfs.cid_of(b"content"), lambda _: junk)


def test_stored_nodes_lie_where_their_hash_says(tmp_path: Path) -> None:
    """The store writes whole nodes under names that state their hashes, and leaves no other file."""
    store = BlockStore(tmp_path)
    (tmp_path / "blocks").mkdir()
    content = bytes(unixfs.CHUNK_BYTES + 5)
    assert not store.has(content)
    assert store.put(content) == unixfs.cid_of(content)
    assert store.has(content)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        assert path.parent.name == path.stem[-3:-1]
        assert unixfs.matches_flatfs_name(path.name, path.read_bytes())
        assert not unixfs.matches_flatfs_name(path.name, path.read_bytes()[:-1])


@given(number=st.integers(0, 2**512 - 1))
def test_numbers_are_encoded_as_upstream_does(tools: Any, number: int) -> None:
    """Base 255 both ways is upstream's."""
    assert block_ids.to_base255(number) == bytes(tools.to_b255_no_0s(number))
    assert block_ids.base255(block_ids.to_base255(number)) == number


@given(content=st.binary(min_size=1, max_size=200))
def test_hashes_are_encoded_as_upstream_does(tools: Any, content: bytes) -> None:
    """The content hash in an id is upstream's encoding of SHA-512."""
    digest = hashlib.sha512(content).digest()
    assert block_ids.hash_field(digest) == bytes(tools.bytes_to_b255_no_0s(digest))


@settings(max_examples=60, deadline=None)
@given(content=st.binary(min_size=1, max_size=300), seed=st.integers(0, 100))
def test_block_files_of_the_memory_chain_are_upstreams_format(tools: Any, content: bytes, seed: int) -> None:
    """Upstream reads such a file, finds it whole, and makes the same long id from it."""
    assert tools is not None
    model = importlib.import_module("walytis_beta_tools.block_model")
    network = MemoryNetwork(seed, manual=True)
    chain = network.replica("a")
    ref = chain.append(content)
    block = model.Block.from_filedata(bytearray(chain._blocks[ref.key].file_data), block_ids.cid_of(ref.block_id))
    block.generate_id()
    assert bytes(block.content) == content
    assert bytes(block.long_id) == ref.block_id
    assert block.check_integrity()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(min_size=1, max_size=100), data=st.data())
def test_any_changed_byte_of_a_block_file_is_refused(content: bytes, data: st.DataObject) -> None:
    """A block file that differs from its id in any byte, or in length, gives our error and no content."""
    chain = MemoryNetwork(3, manual=True).replica("a")
    ref = chain.append(content)
    file_data = bytearray(chain._blocks[ref.key].file_data)
    assert block_ids.content_of(bytes(file_data), ref.block_id) == content
    position = data.draw(st.integers(0, len(file_data) - 1))
    file_data[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UntrustedInputError):
        block_ids.content_of(bytes(file_data), ref.block_id)
    with pytest.raises(UntrustedInputError):
        block_ids.content_of(bytes(file_data) + b"x", ref.block_id)


@given(junk=st.binary(max_size=2000))
def test_junk_ids_are_our_error_or_nothing(junk: bytes) -> None:
    """Taking any bytes apart as a block id gives a reference or our error, never another exception."""
    for function in (block_ids.ref_of, block_ids.cid_of, block_ids.parents_of):
        with contextlib.suppress(UntrustedInputError):
            function(junk)
    with pytest.raises(UntrustedInputError):
        block_ids.content_of(b"file", junk)


@pytest.mark.parametrize("cid", ["", "../../etc/passwd", "Qm/../x", "Qm\0abcdefgh", "a" * 129, "Qmé" + "a" * 20])
def test_content_ids_cannot_name_paths(cid: str) -> None:
    """What is no content id is refused before it names a file."""
    with pytest.raises(UntrustedInputError):
        block_ids.checked_cid(cid)


class Leaves:
    """As much of upstream's Networking as the leaf memory needs."""

    def __init__(self) -> None:
        self._Networking__shared_leaf_blocks: dict[str, datetime] = {}
        self._Networking__lslb_lock = Lock()


@settings(max_examples=200, deadline=None)
@given(
    told=st.lists(
        st.tuples(st.integers(0, 15), st.lists(st.sampled_from("abcdef"), max_size=4)), min_size=1, max_size=12
    )
)
def test_leaf_memory_is_upstreams(told: list[tuple[int, list[str]]]) -> None:
    """After any messages at any times the remembered leaves are those of upstream's rule: told within 20 seconds."""
    leaves = Leaves()
    now = datetime(2026, 1, 1, tzinfo=UTC)
    expected: dict[str, datetime] = {}
    for pause, ids in told:
        now += timedelta(seconds=pause)
        gossip.update_shared_leaf_blocks(leaves, ids, now=now)
        expected.update(dict.fromkeys(ids, now))
        expected = {name: at for name, at in expected.items() if (now - at).total_seconds() <= gossip.LEAF_MEMORY}
        assert leaves._Networking__shared_leaf_blocks == expected
    assert not leaves._Networking__lslb_lock.locked()


def test_leaf_memory_is_bounded_by_what_it_takes() -> None:
    """Strangers may tell as many long ids as they like: what is remembered stays small, and the newest stay."""
    leaves = Leaves()
    for number in range(1000):
        gossip.update_shared_leaf_blocks(leaves, [f"{number:05}" + "x" * gossip.MAX_ID_TEXT])
    remembered = leaves._Networking__shared_leaf_blocks
    assert sum(map(len, remembered)) <= gossip.MAX_REMEMBERED_CHARACTERS
    assert next(reversed(remembered)).startswith("00999")
