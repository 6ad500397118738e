"""What the inviter's node does for newcomers: once for several, for one at a time, and without holding up others."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from walytis_vault.domain.errors import BusyError, MisuseError
from walytis_vault.domain.limits import SEGMENT_BYTES
from walytis_vault.peers import admission as adm
from walytis_vault.peers import protocol as p

FIRST, SECOND = b"f" * 32, b"s" * 32
CHAIN = bytes(range(256)) * (SEGMENT_BYTES // 128)


class Packer:
    """Packs a chain when the test lets it, and counts."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end, self.at_it = threading.Event(), threading.Event()
        self.may_end.set()

    def __call__(self, _chain_id: str, target: Path) -> int:
        self.begun += 1
        self.at_it.set()
        assert self.may_end.wait(30)
        return target.write_bytes(CHAIN)


@pytest.fixture
def packer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Packer]:
    """Instead of a chain."""
    made = Packer()
    monkeypatch.setattr(adm, "pack_chain", made)
    yield made
    made.may_end.set()


@pytest.fixture
def admission(tmp_path: Path) -> adm.Admission:
    """An inviter who finds every invitation good."""
    good = SimpleNamespace(check=lambda *_: None, revoke=lambda _id: SimpleNamespace(door_key=FIRST))
    identity = SimpleNamespace(close=lambda: None, revoke_invitations=lambda: None)
    config: Any = SimpleNamespace(vault_id="vault")
    parts: dict[str, Any] = dict.fromkeys(("addresses", "keys", "randomness"))
    invitations: Any = good
    keeper: Any = identity
    nothing: Any = None
    return adm.Admission(config, nothing, invitations, keeper, nothing, folder=tmp_path, peer_id="me", **parts)


def fetched(admission: adm.Admission, who: bytes) -> bytes:
    """The whole chain, as one invited gets it."""
    reply, _ = admission.answer(who, p.ChainSize())
    assert isinstance(reply, p.Done)
    got = b""
    while len(got) < reply.number:
        _, (part,) = admission.answer(who, p.ChainPart(offset=len(got)))
        got += part
    return got


def test_one_pack_serves_all_who_come(admission: adm.Admission, packer: Packer, tmp_path: Path) -> None:
    """However often and by whomever it is asked for, the chain is packed once, and leaves no file."""
    assert fetched(admission, FIRST) == fetched(admission, SECOND) == fetched(admission, FIRST) == CHAIN
    assert packer.begun == 1
    assert not list(tmp_path.iterdir())


def test_an_old_pack_is_made_anew(admission: adm.Admission, packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes later gets a newer one; who is still fetching keeps the one that was begun."""
    assert fetched(admission, FIRST) == CHAIN
    monkeypatch.setattr(adm, "PACK_FRESH_S", -1.0)
    assert fetched(admission, SECOND) == CHAIN
    assert packer.begun == 2
    assert admission.answer(FIRST, p.ChainPart(offset=0))[1] == [CHAIN[:SEGMENT_BYTES]]
    admission.close()
    gc.collect()
    with pytest.raises(MisuseError, match="first"):
        admission.answer(FIRST, p.ChainPart(offset=0))


def test_while_a_chain_is_packed_nobody_waits_in_line(admission: adm.Admission, packer: Packer) -> None:
    """Another newcomer is told to come back, and an invitation can be revoked."""
    packer.may_end.clear()
    packing = threading.Thread(target=fetched, args=(admission, FIRST))
    packing.start()
    assert packer.at_it.wait(30)
    with pytest.raises(BusyError):
        admission.answer(SECOND, p.ChainSize())
    admission.revoke("id")
    packer.may_end.set()
    packing.join(30)
    assert fetched(admission, SECOND) == CHAIN
