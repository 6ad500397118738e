"""A member's node serves something else than it should: never is a wrong byte believed, and another holder is asked."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from support.lying_process import LIE_VARIABLE, LIES
from support.peer_nodes import Member, agree, eventually, found_and_join, meet, stop_all
from walytis_vault import VaultError

Trio = tuple[Member, Member, Member]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """A member that will lie, and two honest ones."""
    members = found_and_join(tmp_path_factory.mktemp("hostile"), "liar", "holder", "asker")
    try:
        liar, holder, asker = members
        yield liar, holder, asker
    finally:
        stop_all(members)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("size", [1000, (3 << 20) + 5])
def test_whatever_a_holder_serves_nothing_wrong_is_believed(trio: Trio, lie: str, size: int) -> None:
    """The publisher serves lies: what arrives is right, from another holder, and without one nothing arrives."""
    liar, holder, asker = trio
    for member in trio:
        member.stop()
    liar.start()
    holder.start()
    meet(liar, holder)
    other = liar.client.publish(secrets.token_bytes(4 << 20)).content_id
    data, alone = secrets.token_bytes(size), secrets.token_bytes(size)
    held = liar.client.publish(data).content_id
    eventually(lambda: holder.row(held), "the content is known")
    assert eventually(lambda: _read(holder, held), "it is held by two") == data
    assert eventually(lambda: _read(holder, other), "so is the other")
    holder.stop()
    not_held = liar.client.publish(alone).content_id
    liar.stop()
    liar.start_as("support.lying_process", **{LIE_VARIABLE: lie})
    asker.start()
    meet(liar, asker)
    eventually(lambda: asker.row(held) and asker.row(not_held), "the contents are known")
    for content_id in (held, not_held):
        with pytest.raises(VaultError):
            asker.client.request(content_id, timeout=5)
        assert asker.state(content_id) == "pending"
    holder.start()
    meet(holder, asker)
    assert eventually(lambda: _read(asker, held), "another holder is used") == data
    liar.stop()
    liar.start()
    meet(*trio)
    assert eventually(lambda: _read(asker, not_held), "the truth is believed later") == alone
    agree(*trio)
    assert all(m.client.audit(read_data=True)["ok"] for m in trio)


def _read(member: Member, content_id: str) -> bytes | None:
    """The content if it can be had within some seconds."""
    try:
        return member.client.request(content_id, timeout=5)
    except VaultError:
        return None
