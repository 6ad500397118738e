"""Revisions that two devices of one member make without knowing of each other, on two real nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command_line import as_json, run
from support.peer_nodes import Member, agree, eventually, found, join, meet, stop_all
from walytis_vault import ForgottenError

pytestmark = pytest.mark.long


def test_concurrent_revisions_stand_side_by_side_until_another_resolves_them(tmp_path: Path) -> None:
    """Both are shown as a conflict on both nodes; a revision that knows both ends it; the past still shows it;
    forgetting takes original and all revisions, and leaves gaps in the past."""
    members: list[Member] = []
    try:
        members.append(first := found(tmp_path / "a"))
        members.append(second := join(tmp_path / "b", first, device=True))
        original = first.client.publish(b"version 0", name="plan").content_id
        for member in (first, second):
            eventually(lambda m=member: m.state(original) == "available", "both have the original")  # type: ignore[misc]
        second.stop()
        left = first.client.publish(b"version 1, left", name="plan", revises=original).content_id
        first.stop()
        second.start()
        right = second.client.publish(b"version 1, right", name="plan", revises=original).content_id
        first.start()
        meet(first, second)
        for member in (first, second):
            eventually(lambda m=member: m.client.query("catalogue", conflict=True), "the conflict shows")  # type: ignore[misc]
            rows = member.client.query("catalogue", conflict=True)
            assert {r.content_id for r in rows} == {left, right}
            assert all(r.current and r.revises == original for r in rows)
            assert {r["content_id"] for r in as_json(member.home, "ls", "--conflict")} == {left, right}
            assert not member.row(original).current
            eventually(lambda m=member: m.client.request(left) == b"version 1, left", "the left side is readable")  # type: ignore[misc]
            eventually(lambda m=member: m.client.request(right) == b"version 1, right", "so is the right one")  # type: ignore[misc]
        agree(first, second)
        before = second.client.status().position

        merged = second.client.publish(b"version 2, both", name="plan", revises=left).content_id
        for member in (first, second):
            eventually(lambda m=member: m.row(merged) and m.row(merged).current, "the resolution is here")  # type: ignore[misc]
            assert not member.client.query("catalogue", conflict=True)
            assert [r.content_id for r in member.client.query("catalogue", current=True)] == [merged]
            assert {r.content_id for r in member.client.query("catalogue", revises=original)} == {left, right, merged}
            eventually(lambda m=member: m.state(merged) == "available", "it is fetched")  # type: ignore[misc]
        past = second.client.query("catalogue", as_of=before, conflict=True)
        assert {r.content_id for r in past} == {left, right}
        agree(first, second)

        assert first.client.forget(original, reason="done").state == "carried"
        for member in (first, second):
            for content_id in (original, left, right, merged):
                eventually(lambda m=member, c=content_id: m.state(c) == "forgotten", "all of it is forgotten")  # type: ignore[misc]
                with pytest.raises(ForgottenError):
                    member.client.request(content_id)
        gaps = second.client.query("catalogue", as_of=before, state="forgotten")
        assert {(r.content_id, r.name, r.size) for r in gaps} == {(c, None, None) for c in (original, left, right)}
        shown = run(second.home, "replay", "catalogue", "--until", str(before)).stdout.decode()
        assert shown.count("forgotten") >= 3
        assert "plan" not in shown
        agree(first, second)
    finally:
        stop_all(members)
