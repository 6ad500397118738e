"""Blocks from members' doors: asked before Kubo, believed only by their content id, and never a reason to wait long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from walytis_vault.adapters.walytis import unixfs, upstream
from walytis_vault.adapters.walytis.block_store import BlockStore
from walytis_vault.adapters.walytis.fetch import Fetcher
from walytis_vault.domain.errors import NotYetAvailableError, TimedOutError, TransportError, UntrustedInputError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.peers import protocol as p
from walytis_vault.peers.blocks import ASKED, MemberBlocks, files_for
from walytis_vault.peers.link import PeerLink

FILE = b"a block file"
CID = unixfs.cid_of(FILE)
WAIT_S = 20.0


class Kubo:
    """Upstream's node: gives the one file, or nothing."""

    def __init__(self) -> None:
        self.files = self
        self.asked: list[str] = []
        self.has: bytes | None = FILE

    def download(self, cid: str, path: str) -> bool:
        """See upstream."""
        self.asked.append(cid)
        if self.has is not None:
            Path(path).write_bytes(self.has)
        return self.has is not None


@pytest.fixture
def kubo(monkeypatch: pytest.MonkeyPatch) -> Kubo:
    """In place of the running node."""
    made = Kubo()
    monkeypatch.setattr(upstream, "node", lambda: made)
    return made


@pytest.fixture
def fetcher(tmp_path: Path, kubo: Kubo) -> Fetcher:
    """A fetcher that can give IPFS what came another way."""
    for folder in ("downloads", "ipfs/blocks"):
        (tmp_path / folder).mkdir(parents=True)
    made = Fetcher(tmp_path / "downloads")
    made.use_store(BlockStore(tmp_path / "ipfs"))
    return made


def fails(_cid: str, _maker: str) -> bytes | None:
    """A source that breaks its promise."""
    raise RuntimeError("unexpected")


def test_what_a_member_gives_is_not_downloaded(fetcher: Fetcher, kubo: Kubo, tmp_path: Path) -> None:
    """The source is asked with the maker's name; Kubo only gets the block to serve it."""
    asked: list[tuple[str, str]] = []

    def source(cid: str, maker: str) -> bytes:
        asked.append((cid, maker))
        return FILE

    fetcher.ask_first(source)
    assert fetcher.fetch(CID, WAIT_S, "12D3maker") == FILE
    assert (asked, kubo.asked) == ([(CID, "12D3maker")], [])
    assert (fetcher.from_members, fetcher.from_kubo) == (1, 0)
    assert BlockStore(tmp_path / "ipfs").get(CID) == FILE


@pytest.mark.parametrize(
    "source",
    [lambda *_: None, lambda *_: b"", lambda *_: b"other bytes", lambda *_: bytes(unixfs.MAX_FILE_BYTES + 1), fails],
    ids=["none", "empty", "wrong", "too large", "fails"],
)
def test_what_no_member_gives_comes_from_kubo(
    fetcher: Fetcher, kubo: Kubo, source: Callable[[str, str], bytes | None]
) -> None:
    """Whatever the source does, the block is downloaded as before."""
    fetcher.ask_first(source)
    assert fetcher.fetch(CID, WAIT_S) == FILE
    assert kubo.asked == [CID]
    assert (fetcher.from_members, fetcher.from_kubo) == (0, 1)
    kubo.has = None
    with pytest.raises(NotYetAvailableError):
        fetcher.fetch(CID, WAIT_S)


def test_without_a_place_to_serve_blocks_from_members_are_not_asked(tmp_path: Path, kubo: Kubo) -> None:
    """A block that IPFS could not serve to others is left to Kubo altogether."""
    fetcher = Fetcher(tmp_path)
    fetcher.ask_first(lambda *_: FILE)
    assert fetcher.fetch(CID, WAIT_S) == FILE
    assert kubo.asked == [CID]


class Link:
    """Answers every question alike."""

    def __init__(self, *answer: bytes, error: Exception | None = None) -> None:
        self.answer, self.error = answer, error
        self.asked: list[tuple[p.Request, float]] = []

    def ask(self, request: p.Request, payload: Any = (), *, timeout: float) -> tuple[p.Reply, list[bytes]]:
        """See `PeerLink.ask`."""
        self.asked.append((request, timeout))
        if self.error is not None:
            raise self.error
        return p.Done(number=len(self.answer)), list(self.answer)


def device(name: str, link: Link) -> tuple[DeviceKeys, PeerLink]:
    """A device behind a link."""
    keys = DeviceKeys(
        member=name, device=f"did:{name}", ed25519=bytes(32), ml_dsa_65=bytes(1952), bus=bytes(32), peer_id=name
    )  # fmt: skip
    return keys, cast(PeerLink, link)


def test_the_maker_is_asked_first_and_a_liar_costs_one_question() -> None:
    """Who made the block is asked before others; a wrong file, a refusal or another reply leads to the next device."""
    maker, liar, other = Link(FILE), Link(b"wrong"), Link(FILE)
    there = [device("other", other), device("maker", maker)]
    assert MemberBlocks(lambda: there)(CID, "maker") == FILE
    assert [request for request, _ in maker.asked] == [p.Blocks(cids=(CID,))]
    assert other.asked == []
    for bad in (liar, Link(), Link(bytes(unixfs.MAX_FILE_BYTES + 1)), Link(error=UntrustedInputError("malformed"))):
        there = [device("maker", bad), device("other", other)]
        assert MemberBlocks(lambda now=there: now)(CID, "maker") == FILE  # type: ignore[misc]
        assert len(bad.asked) == 1


def test_who_gave_the_last_block_is_asked_next() -> None:
    """A device that has blocks is asked before those that may not have them."""
    giver, links = Link(FILE), [Link() for _ in range(ASKED - 1)]
    there = [device("giver", giver), *(device(f"no-{n}", link) for n, link in enumerate(links))]
    source = MemberBlocks(lambda: there)
    for _ in range(20):
        assert source(CID, "") == FILE
    assert len(giver.asked) == 20
    assert all(len(link.asked) <= 1 for link in links)


def test_a_silent_device_is_left_alone_for_a_while() -> None:
    """Who did not answer in time delays one block; few are asked, each with a bounded wait."""
    silent = [Link(error=TimedOutError("silent")) for _ in range(ASKED)]
    there = [device(f"silent-{n}", link) for n, link in enumerate(silent)]
    source = MemberBlocks(lambda: there)
    assert source(CID, "silent-0") is None
    assert source(CID, "silent-0") is None
    assert all(len(link.asked) == 1 and 0 < link.asked[0][1] <= 1.0 for link in silent)
    crowd = [Link(error=TransportError("gone")) for _ in range(ASKED + 5)]
    assert MemberBlocks(lambda: [device(f"d{n}", link) for n, link in enumerate(crowd)])(CID, "") is None
    assert sum(len(link.asked) for link in crowd) == ASKED


def test_a_reply_is_bounded_and_every_name_is_checked() -> None:
    """Files are given until a reply is full, the first always; one too large for a frame never; no path is a name."""
    one = bytes(p.PART_LIMIT)
    cids = [f"Qm{n:06}" for n in range(8)]
    files = {cids[0]: bytes(p.PART_LIMIT + 1), **dict.fromkeys(cids[2:], one)}
    assert len(files_for(cids, files.get)) == p.BATCH_BYTES // len(one)
    for name in ("../../keys/master", "Qm/../../x", "short", "x" * 129, "Qmé00000"):
        with pytest.raises(UntrustedInputError):
            files_for([cids[0], name], files.get)
