"""Joining on real nodes: codes that are no good, joins that are killed at each step, restarts meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.command_line import ENVIRONMENT, as_json, refused, run, words_for
from support.peer_nodes import Member, agree, eventually, found, meet
from walytis_vault import (
    ConflictError,
    ForgottenError,
    MisuseError,
    PermissionRefusedError,
    TransportError,
    UnknownIdError,
    node,
)
from walytis_vault.node import join_vault
from walytis_vault.peers.invitations import read_code, write_code

KILLED_AT = (
    "kubo.config_replaced",
    "join.after_identity",
    "join.after_chain",
    "accept.before_commit",
    "join.after_admission",
    "append.after_index",
    "append.after_block",
    "join.after_announcement",
    "join.before_config",
)
"""From the node's first file to the home's last one."""


@pytest.fixture(scope="module")
def founder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """A founder whose node runs."""
    member = found(tmp_path_factory.mktemp("founder") / "a")
    try:
        yield member
    finally:
        member.stop()


def listed(inviter: Member, code: str) -> Any:
    """What the inviter's list says of a code; others may have been made before."""
    name = hashlib.sha256(read_code(code).secret).hexdigest()[:16]
    (found,) = (i for i in inviter.client.invitations() if i.invitation_id == name)
    return found


def test_codes_that_are_no_good_are_refused_on_both_sides(founder: Member, tmp_path: Path) -> None:
    """Expired and revoked ones: by the inviter, with the reason, whatever the newcomer's clock shows; all listed."""
    inviter = founder.client
    members = [m.did for m in inviter.members()]
    expired = inviter.invite(expires=1)
    eventually(lambda: listed(founder, expired).state == "expired", "it expires")
    steps: list[str] = []
    with pytest.raises(ForgottenError, match="expired"):
        join_vault(tmp_path / "late", expired, on_progress=steps.append)
    assert "this machine's clock" in steps[0]
    patient = write_code(msgspec.structs.replace(read_code(expired), expires_ms=2**50))
    with pytest.raises(ForgottenError, match="expired"):
        join_vault(tmp_path / "slow-clock", patient)
    revoked = inviter.invite(expires=600)
    wanted = listed(founder, revoked).invitation_id
    (shown,) = (r for r in as_json(founder.home, "invite", "--list") if r["invitation_id"] == wanted)
    assert shown["state"] == "open"
    done = run(founder.home, "invite", "--revoke", wanted)
    assert "revoked" in done.stdout.decode()
    hasty = write_code(msgspec.structs.replace(read_code(revoked), expires_ms=1))
    with pytest.raises(PermissionRefusedError, match="revoked"):
        join_vault(tmp_path / "unwanted", hasty)
    assert [listed(founder, code).state for code in (revoked, expired)] == ["revoked", "expired"]
    assert "no invitation" in refused(founder.home, "invite", "--revoke", "00")
    with pytest.raises(UnknownIdError):
        inviter.revoke_invitation("00")
    run(founder.home, "invite", "--list", "--device", expect=2)
    assert [m.did for m in inviter.members()] == members
    for folder in tmp_path.iterdir():
        assert [p.name for p in folder.iterdir()] == ["node.lock"], "nothing is left of a refused attempt"


def test_on_a_terminal_a_code_is_drawn_too(founder: Member) -> None:
    """The code alone is on stdout; its QR code is on the terminal that stderr is, if that is wide enough."""
    import fcntl
    import os
    import struct
    import subprocess
    import termios

    for columns, drawn in ((100, True), (40, False)):
        reader, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        done = subprocess.run(
            words_for(founder.home, "invite"), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=terminal, timeout=60
        )
        os.close(terminal)
        shown = b""
        while part := _read(reader):
            shown += part
        os.close(reader)
        assert done.returncode == 0
        assert read_code(done.stdout.decode()).vault_id == founder.client.status().vault_id
        assert done.stdout.count(b"\n") == 1
        lines = shown.decode().strip("\r\n").splitlines()
        assert ("█" in shown.decode()) == drawn
        assert (30 < len(lines) < 50) if drawn else ("columns" in lines[0])
    assert run(founder.home, "invite").stderr == b""


def _read(terminal: int) -> bytes:
    import os

    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the other side was closed
        return b""


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", KILLED_AT)
def test_a_join_that_was_killed_is_repeated(
    founder: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """The same command after a kill at any step ends with one more member, who can read and publish."""
    before = len(founder.client.members())
    content_id = founder.client.publish(b"for the newcomer").content_id
    code = founder.client.invite(expires=600)
    newcomer = Member(tmp_path / "b")
    with monkeypatch.context() as planned:
        planned.syspath_prepend(str(Path(__file__).parents[1]))
        planned.setattr(node, "CHILD_MODULE", "support.faulty_process")
        planned.setenv("VAULT_TEST_FAULT", f"{point}:1")
        with pytest.raises(TransportError):
            join_vault(newcomer.home, code)
    steps: list[str] = []
    _join_at_last(newcomer.home, code, steps)
    assert steps[0] == "starting the node"
    try:
        newcomer.start()
        meet(founder, newcomer)
        assert newcomer.client.request(content_id) == b"for the newcomer"
        answer = newcomer.client.publish(b"thank you").content_id
        eventually(lambda: founder.row(answer), "the newcomer's content is seen")
        agree(founder, newcomer)
        assert len(founder.client.members()) == before + 1
        with pytest.raises((MisuseError, ConflictError), match="used already"):
            join_vault(tmp_path / "again", code)
    finally:
        newcomer.stop()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_invitations_and_joins_survive_a_restart_of_the_inviter(
    founder: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code that was given out before the inviter's node restarted is good; so is one of a join that was begun."""
    code = founder.client.invite(expires=600)
    founder.stop()
    founder.start()
    with monkeypatch.context() as planned:
        planned.syspath_prepend(str(Path(__file__).parents[1]))
        planned.setattr(node, "CHILD_MODULE", "support.faulty_process")
        planned.setenv("VAULT_TEST_FAULT", "join.after_admission:1")
        with pytest.raises(TransportError):
            join_vault(tmp_path / "b", code)
    founder.kill()
    with pytest.raises(TransportError, match="repeat"):
        join_vault(tmp_path / "b", code)
    founder.start()
    _join_at_last(tmp_path / "b", code, [])
    newcomer = Member(tmp_path / "b").start()
    try:
        meet(founder, newcomer)
        agree(founder, newcomer)
        assert listed(founder, code).used_by == newcomer.device
    finally:
        newcomer.stop()


def _join_at_last(home: Path, code: str, steps: list[str]) -> None:
    """Join; the identity library's own patience is short when the machine is busy."""
    for left in (2, 1, 0):
        try:
            join_vault(home, code, on_progress=steps.append)
            return
        except TransportError:
            if not left:
                raise
