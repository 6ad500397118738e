"""Removals on three real nodes: unaware of each other, backdated, and forbidden by the founder's policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import as_json, refused, run, serving
from support.peer_nodes import Member, agree, eventually, found_and_join, meet, stop_all
from walytis_vault import PermissionRefusedError, VaultError, node

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[list[Member]]:
    """A founder and two members, all running and connected."""
    members = found_and_join(tmp_path, "a", "b", "c")
    try:
        yield members
    finally:
        stop_all(members)


def test_members_that_remove_each_other_settle_alike_on_all_nodes(trio: list[Member]) -> None:
    """Each removes the other without hearing of it: the senior's removal stands, what the junior did is void."""
    a, b, c = trio
    senior, junior = b.did, c.did
    known = c.client.publish(b"before it all").content_id
    for member in (a, b):
        eventually(lambda m=member: m.state(known) == "available", "it is everywhere")  # type: ignore[misc]
    agree(*trio)
    c.stop()
    b.client.remove(junior, reason="it wants to remove me")
    stop_all([a, b])
    c.start()
    alone = c.client.publish(b"by who was removed, and does not know it").content_id
    run(c.home, "remove", senior, "--reason", "it wants to remove me too")
    assert {m.did: m.state for m in c.client.members()}[senior] == "removed"
    a.start()
    b.start()
    meet(a, b)
    for member in trio:
        eventually(
            lambda m=member: (  # type: ignore[misc]
                {r.did: r.state for r in m.client.members()} == {a.did: "member", senior: "member", junior: "removed"}
            ),
            "all three nodes say the same",
            patience=60.0,
        )
        assert member.row(alone) is None
        assert member.state(known) is not None
    (gone,) = (r for r in as_json(a.home, "members") if r["did"] == junior)
    assert (gone["removed_by"], gone["reason"]) == (senior, "it wants to remove me")
    assert b"it wants to remove me" in run(a.home, "members", "--state", "removed").stdout
    with pytest.raises(VaultError):
        c.client.publish(b"one more")
    assert b.client.publish(b"the senior goes on").position
    agree(a, b)
    assert a.client.audit()["ok"]


def test_only_the_founder_removes_where_it_said_so(tmp_path: Path) -> None:
    """With `--removal founder` a member's attempt is refused with the reason; the founder's succeeds."""
    home, newcomer = tmp_path / "a", Member(tmp_path / "b")
    run(home, "init", "--removal", "founder")
    with serving(home):
        (founder,) = as_json(home, "members")
        code = run(home, "invite").stdout.decode()
        node.join_vault(newcomer.home, code)
        newcomer.start()
        try:
            did = newcomer.did
            eventually(lambda: newcomer.client.status().peers, "they are connected")
            with pytest.raises(PermissionRefusedError, match="only its founder"):
                newcomer.client.remove(founder["did"])
            assert "only its founder" in refused(newcomer.home, "remove", founder["did"])
            run(home, "remove", did, "--reason", "over")
            eventually(lambda: not newcomer.client.status().peers, "the removed is alone")
            (row,) = (r for r in as_json(home, "members") if r["did"] == did)
            assert (row["state"], row["removed_by"], row["reason"]) == ("removed", founder["did"], "over")
        finally:
            newcomer.stop()
