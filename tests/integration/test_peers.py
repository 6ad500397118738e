"""Two members on two real nodes: join, replicate, fetch, forget by consent."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.canaries import find_canaries
from support.command_line import ENVIRONMENT, as_json, run, words_for
from support.peer_nodes import Member, agree, eventually, found, join, meet
from walytis_vault import ForgottenError, MisuseError, VaultError
from walytis_vault.node import join_vault


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Member, Member, str]]:
    """A founder and a member that joined with a code, both running; and the code."""
    folder = tmp_path_factory.mktemp("pair")
    a = found(folder / "a")
    b = Member(folder / "b")
    try:
        before = a.client.publish(b"from before the join", name="before").content_id
        code = a.client.invite(expires=600)
        join_vault(folder / "b", code)
        b.start()
        eventually(lambda: b.row(before), "the joined node knows what was published before")
        yield a, b, code
    finally:
        b.stop()
        a.stop()


def test_both_logs_give_equal_views(pair: tuple[Member, Member, str]) -> None:
    """Each sees what the other publishes, as members of one vault, and all views come out equal."""
    a, b, _ = pair
    from_a, from_b = (m.client.publish(b"mine", name="mine").content_id for m in (a, b))
    eventually(lambda: b.row(from_a) and a.row(from_b), "each sees the other's content")
    assert [m.did for m in a.client.members()] == [m.did for m in b.client.members()] == [a.did, b.did]
    agree(a, b)
    assert a.client.status().peers == (b.did,)
    assert b.client.audit()["ok"]


def test_blocks_come_from_members_doors(pair: tuple[Member, Member, str]) -> None:
    """Of many blocks of one member nearly all come to the other through its door, not through Kubo."""
    a, b, _ = pair
    before = b.client.status().details["blocks"]
    for number in range(200):
        last = a.client.publish(b"small %d" % number).content_id
    eventually(lambda: b.row(last), "the other sees the last content")
    # The batches run ahead of their blocks.
    eventually(lambda: came(b, before)["from_members"] >= 180, "the blocks came from the other's door")
    agree(a, b)
    assert came(b, before)["from_kubo"] <= 20


def came(member: Member, before: dict[str, int]) -> dict[str, int]:
    """How many blocks came on each way since some time."""
    return {way: count - before[way] for way, count in member.client.status().details["blocks"].items()}


def test_contents_are_fetched_on_request_and_small_ones_before(pair: tuple[Member, Member, str]) -> None:
    """A small content comes by itself with its name; a large one when it is asked for, byte for byte."""
    a, b, _ = pair
    small, large = secrets.token_bytes(3000), secrets.token_bytes(5 << 20)
    first = a.client.publish(small, name="small one").content_id
    second = a.client.publish(large, name="large one").content_id
    eventually(lambda: (r := b.row(first)) and r.state == "available", "the small content came")
    assert b.row(first).name == "small one"
    eventually(lambda: (r := b.row(second)) and r.state == "pending", "the large content is known")
    assert b.client.request(second) == large
    assert b.client.request(first) == small
    assert b.row(second).name == "large one"


def test_dropped_contents_come_back_when_asked_for(pair: tuple[Member, Member, str]) -> None:
    """What another node holds can be dropped; it stays away until somebody asks for it, then it is fetched."""
    a, b, _ = pair
    data = secrets.token_bytes(200_000)
    content_id = a.client.publish(data, name="heavy").content_id
    eventually(lambda: b.state(content_id) == "available", "the content came")
    assert b.client.request(content_id) == data
    assert b.client.drop(content_id).freed > len(data)
    assert b.state(content_id) == "pending"
    b.stop()
    b.start()
    later = a.client.publish(b"later").content_id
    eventually(lambda: b.state(later) == "available", "what came later is fetched by itself")
    assert (b.state(content_id), b.row(content_id).name) == ("pending", "heavy")
    assert b.client.request(content_id) == data
    assert a.client.drop(content_id).freed > len(data)
    assert a.client.request(content_id) == data
    agree(a, b)


def test_who_holds_a_content_now_is_a_view(pair: tuple[Member, Member, str]) -> None:
    """Whoever fetched a content is named while it has it and is connected; the view's hash does not depend on it."""
    a, b, _ = pair
    content_id = a.client.publish(secrets.token_bytes(3 << 20)).content_id
    eventually(lambda: b.state(content_id) == "pending", "the content is known")

    def held_by(member: Member) -> tuple[str, ...]:
        (row,) = member.client.query("holders", content_id=content_id)
        return tuple(row.held_by)

    eventually(lambda: held_by(b) == (a.device,), "who published it is named by the other")
    assert held_by(a) == ()
    agree(a, b)
    before = a.hashes()["holders"]
    b.client.request(content_id)
    eventually(lambda: held_by(a) == (b.device,), "who fetched it is named")
    (shown,) = as_json(a.home, "holders", content_id)
    assert (shown["state"], shown["device"], shown["here"], shown["held_by"]) == (
        "published", a.device, True, [b.device],
    )  # fmt: skip
    assert b.device[-6:] in run(a.home, "holders", content_id).stdout.decode()
    b.client.drop(content_id)
    eventually(lambda: held_by(a) == (), "who dropped it is named no more")
    b.client.request(content_id)
    with b.frozen():
        assert held_by(a) == (), "who does not answer is not named"
    assert a.hashes()["holders"] == b.hashes()["holders"] == before


def test_forgetting_waits_for_all_and_leaves_nothing_on_either_disk(pair: tuple[Member, Member, str]) -> None:
    """A proposal is open until the other consents; then both erase and say so, and no trace is on either disk."""
    a, b, _ = pair
    secret, name = secrets.token_bytes(32), secrets.token_hex(16)
    content_id = a.client.publish(secret * 50, name=name).content_id
    eventually(lambda: (r := b.row(content_id)) and r.state == "available", "the content came")
    ballot_id = b.client.forget(content_id, reason="no longer needed").ballot_id
    assert eventually(lambda: a.ballot(ballot_id), "the other sees the ballot").state == "open"
    assert a.client.request(content_id) == secret * 50
    assert a.client.consent(ballot_id).state == "carried"
    for member in (a, b):
        eventually(lambda m=member: (r := m.ballot(ballot_id)) and len(r.receipts) == 2, "two receipts")  # type: ignore[misc]
        assert member.ballot(ballot_id).state == "carried"
        with pytest.raises(ForgottenError):
            member.client.request(content_id)
        assert find_canaries(member.home, {"content": secret, "name": name.encode()}) == []
    agree(a, b)


def test_a_refusal_ends_a_ballot(pair: tuple[Member, Member, str]) -> None:
    """When the other refuses, the content stays readable on both nodes."""
    a, b, _ = pair
    content_id = a.client.publish(b"keep me").content_id
    eventually(lambda: (r := b.row(content_id)) and r.state == "available", "the content came, and its key")
    ballot_id = a.client.forget(content_id).ballot_id
    eventually(lambda: b.ballot(ballot_id), "the other sees the ballot")
    assert b.client.refuse(ballot_id, reason="still needed").state == "refused"
    eventually(lambda: (r := a.ballot(ballot_id)) and r.state == "refused", "the proposer sees the refusal")
    assert a.client.request(content_id) == b.client.request(content_id) == b"keep me"


def test_a_code_admits_once(pair: tuple[Member, Member, str], tmp_path: Path) -> None:
    """A used code, a mutilated one and none at all are refused with the reason, and nothing is left."""
    _, _, code = pair
    with pytest.raises(MisuseError, match="used already"):
        join_vault(tmp_path / "again", code)
    with pytest.raises(MisuseError, match="no invitation code"):
        join_vault(tmp_path / "cut", code[:-7])
    with pytest.raises(VaultError):
        join_vault(tmp_path / "none", "")
    assert [p.name for folder in tmp_path.iterdir() for p in folder.iterdir()] == ["node.lock"]


def test_members_that_were_off_catch_up(pair: tuple[Member, Member, str]) -> None:
    """A node that was off when something was published and forgotten shows the same views when it is back."""
    a, b, _ = pair
    content_id = a.client.publish(b"to be forgotten while one is off").content_id
    eventually(lambda: (r := b.row(content_id)) and r.state == "available", "the content came")
    ballot_id = b.client.forget(content_id).ballot_id
    eventually(lambda: a.ballot(ballot_id), "the other sees the ballot")
    b.stop()
    meanwhile = a.client.publish(b"meanwhile", name="meanwhile").content_id
    assert a.client.consent(ballot_id).state == "carried"
    b.start()
    for member in (a, b):
        eventually(lambda m=member: (r := m.ballot(ballot_id)) and len(r.receipts) == 2, "two receipts")  # type: ignore[misc]
    eventually(lambda: (r := b.row(meanwhile)) and r.state == "available", "what was published meanwhile came")
    with pytest.raises(ForgottenError):
        b.client.request(content_id)
    agree(a, b)


def test_a_second_device_is_the_same_member(pair: tuple[Member, Member, str], tmp_path: Path) -> None:
    """Its contents are its member's, its vote is its member's only one, its receipt its own; lost, it alone goes."""
    a, b, _ = pair
    secret = secrets.token_bytes(32)
    second = join(tmp_path / "second", b, device=True)
    try:
        meet(a, b, second)
        assert second.did == b.did
        assert second.device != b.device
        content_id = second.client.publish(secret * 30).content_id
        for member in (a, b, second):
            eventually(lambda m=member: m.state(content_id) == "available", "it is everywhere")  # type: ignore[misc]
            assert member.row(content_id).author == b.did
            assert [len(m.devices) for m in member.client.members()] == [1, 2]
        ballot_id = a.client.forget(content_id).ballot_id
        eventually(lambda: second.ballot(ballot_id), "the second device sees the ballot")
        assert second.client.consent(ballot_id).state == "carried"
        for member in (a, b, second):
            eventually(lambda m=member: len(m.ballot(ballot_id).receipts) == 3, "three receipts")  # type: ignore[misc]
            assert (len(member.ballot(ballot_id).consents), member.state(content_id)) == (2, "forgotten")
            assert find_canaries(member.home, {"content": secret}) == []
        agree(a, b, second)
        b.client.remove(second.device)
        eventually(lambda: not second.client.status().peers, "nobody talks to the lost device")
        with pytest.raises(VaultError):
            second.client.publish(b"from the lost device")
    finally:
        second.stop()
    after = b.client.publish(b"after the loss").content_id
    eventually(lambda: a.state(after) == "available", "its member goes on")
    agree(a, b)


@pytest.mark.timeout(300)
@pytest.mark.long
@pytest.mark.parametrize("nodes", [2, 3])
def test_the_demo_with_several_nodes_does_all_its_steps(tmp_path: Path, nodes: int) -> None:
    """`demo --nodes N` ends well, says how, and leaves nothing in the temporary folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        words_for(tmp_path, "demo", "--nodes", str(nodes), "--json"),
        env={**ENVIRONMENT, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    for told in ("bob$ walytis-vault join", "starting the node", "all nodes are connected", "byte for byte",
                 "signed that it has", "the views are equal"):  # fmt: skip
        assert told in done.stderr
    assert list(temporary.iterdir()) == []
