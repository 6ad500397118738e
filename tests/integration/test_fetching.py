"""Fetching between three real nodes: several holders at once, holders that are killed, rules, and what nobody has."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.command_line import ENVIRONMENT, words_for
from support.disk_keys import sealed_slots
from support.faulty_process import FAULT_VARIABLE
from support.paced_process import MEET_VARIABLE, PATIENT_VARIABLE
from support.peer_nodes import Member, eventually, found, join, meet
from walytis_vault import DamagedContentError, MisuseError, Node, NotYetAvailableError

pytestmark = pytest.mark.long
MIB = 1 << 20
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Member, Member, Member]]:
    """A founder and two that joined, all connected."""
    folder = tmp_path_factory.mktemp("three")
    started: list[Member] = []
    try:
        started.append(a := found(folder / "a"))
        started.append(b := join(folder / "b", a))
        started.append(c := join(folder / "c", a))
        meet(a, b, c)
        yield a, b, c
    finally:
        for member in started:
            member.stop()


def known(member: Member, content_id: str, state: str = "pending") -> None:
    """Wait until a member's catalogue has a content in a state."""
    eventually(lambda: (r := member.row(content_id)) and r.state == state, f"the content is {state}", PATIENCE_S)


def moved(member: Member, way: str) -> int:
    """Bytes of segments that a node sent or received since its start."""
    return int(member.client.status().details["segments"][way])


def restarted(member: Member, module: str, **environment: str) -> None:
    """Have another program serve a member's node."""
    member.stop()
    member.start_as(module, **environment)


def as_usual(*members: Member) -> None:
    """Serve as ever, connected."""
    for member in members:
        member.stop()
        member.start()
    meet(*members)


def test_several_holders_deliver_one_content(members: tuple[Member, Member, Member], tmp_path: Path) -> None:
    """Of a content that two nodes hold, a third takes segments from both, each of them once."""
    a, b, c = members
    data = secrets.token_bytes(96 * MIB)
    content_id = a.client.publish(data).content_id
    known(b, content_id)
    assert b.client.request(content_id, timeout=PATIENCE_S) == data
    for holder in (a, b):
        restarted(holder, "support.paced_process", **{MEET_VARIABLE: f"{tmp_path}:2"})
    restarted(c, "support.paced_process", **{PATIENT_VARIABLE: "1"})
    try:
        meet(a, b, c)
        known(c, content_id)
        before = [moved(a, "sent"), moved(b, "sent"), moved(c, "received")]
        assert c.client.request(content_id, timeout=PATIENCE_S) == data
        from_a, from_b, at_c = (
            now - then
            for now, then in zip([moved(a, "sent"), moved(b, "sent"), moved(c, "received")], before, strict=True)
        )
        assert min(from_a, from_b) >= MIB
        assert from_a + from_b == at_c
        assert len(data) - MIB <= at_c < len(data) + MIB, "the first came with the answer who holds it"
    finally:
        as_usual(a, b, c)


def test_a_holder_that_is_killed_in_the_middle_is_replaced(members: tuple[Member, Member, Member]) -> None:
    """SIGKILL for one of two holders while it delivers: the request ends with the right bytes all the same."""
    a, b, c = members
    data = secrets.token_bytes(200 * MIB)
    content_id = b.client.publish(data).content_id
    known(a, content_id)
    assert a.client.request(content_id, timeout=PATIENCE_S) == data
    restarted(b, "support.faulty_process", **{FAULT_VARIABLE: "serve.before_segment:5"})
    try:
        meet(a, b, c)
        known(c, content_id)
        assert c.client.request(content_id, timeout=PATIENCE_S) == data
        assert b.node is not None
        assert not b.node.running
    finally:
        as_usual(b)
    meet(a, b, c)


def test_a_transfer_goes_on_when_its_only_holder_is_back(members: tuple[Member, Member, Member]) -> None:
    """The only holder is killed and started again: the same request ends, and nothing that verified came twice."""
    a, b, c = members
    data = secrets.token_bytes(200 * MIB)
    content_id = a.client.publish(data).content_id
    restarted(a, "support.faulty_process", **{FAULT_VARIABLE: "serve.before_segment:40"})
    meet(a, b, c)
    for member in (b, c):
        known(member, content_id)
    before = moved(b, "received")
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(b.client.request, content_id, timeout=PATIENCE_S)
        try:
            eventually(lambda: a.node and not a.node.running, "it dies while it delivers", PATIENCE_S)
            # Others do not wait for its return: what nobody has is reported.
            with pytest.raises(NotYetAvailableError):
                c.client.request(content_id, timeout=PATIENCE_S)
            first = moved(b, "received") - before
            assert not request.done()
        finally:
            as_usual(a)
        assert request.result(PATIENCE_S) == data
    received = moved(b, "received") - before
    assert 0 < first < received < len(data) + 24 * MIB
    meet(a, b, c)


def test_what_nobody_has_holds_up_nothing(members: tuple[Member, Member, Member]) -> None:
    """Requests for contents whose holder is off are refused with the reason; others are served meanwhile."""
    a, b, c = members
    lost = [a.client.publish(secrets.token_bytes(3 * MIB)).content_id for _ in range(12)]
    there = c.client.publish(secrets.token_bytes(3 * MIB)).content_id
    for content_id in (*lost, there):
        known(b, content_id)
    a.stop()
    try:
        with ThreadPoolExecutor(12) as pool:
            waiting = [pool.submit(b.client.request, content_id, timeout=30) for content_id in lost]
            assert len(b.client.request(there, timeout=PATIENCE_S) or b"") == 3 * MIB
            for request in waiting:
                with pytest.raises(NotYetAvailableError, match="connected"):
                    request.result(PATIENCE_S)
    finally:
        a.start()
    meet(a, b, c)
    assert len(b.client.request(lost[0], timeout=PATIENCE_S) or b"") == 3 * MIB


def test_a_node_fetches_by_its_rule(members: tuple[Member, Member, Member]) -> None:
    """all, small and on-request fetch what they say, within their bounds, and are kept for the next start."""
    a, b, _ = members

    def publish() -> tuple[str, str]:
        small, large = (a.client.publish(secrets.token_bytes(size)).content_id for size in (5000, 5 * MIB))
        eventually(lambda: b.row(small) and b.row(large), "both are known", PATIENCE_S)
        return small, large

    def restart(**options: object) -> None:
        b.stop()
        b.start(**options)
        meet(a, b)

    restart(fetch="on-request")
    unasked = publish()
    restart(fetch="all", fetch_limit=2 * MIB)
    for_all = publish()
    known(b, unasked[0], "available")
    known(b, for_all[0], "available")
    assert [b.row(i).state for i in (unasked[1], for_all[1])] == ["pending", "pending"]
    restart(fetch="all")
    for content_id in (*unasked, *for_all):
        known(b, content_id, "available")
    restart()
    assert b.client.status().details["fetch"]["mode"] == "all"
    for content_id in publish():
        known(b, content_id, "available")
    restart(fetch="all", fetch_space=0)
    full = publish()
    eventually(lambda: b.client.status().details["fetch"]["full"], "the space is used up", PATIENCE_S)
    assert [b.row(i).state for i in full] == ["pending", "pending"]
    assert len(b.client.request(full[1], timeout=PATIENCE_S) or b"") == 5 * MIB
    b.stop()
    with pytest.raises(MisuseError, match="on-request"):
        Node.open(b.home, fetch="some")
    restart(fetch="small")
    known(b, full[0], "available")


def flip(path: Path, *offsets: int) -> None:
    """Flip a bit at each offset of a file."""
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))


def test_the_audit_names_damage_and_repairs_it_from_a_peer(
    members: tuple[Member, Member, Member], tmp_path: Path
) -> None:
    """Flipped bits in a large and in small contents, and in a key: the audit names each, and they read right again."""
    a, b, _ = members
    data = secrets.token_bytes(6 * MIB)
    large, small = a.client.publish(data).content_id, a.client.publish(data[:3000]).content_id
    keyless = a.client.publish(b"its key will be lost").content_id
    known(b, small, "available")
    known(b, keyless, "available")
    known(b, large)
    assert b.client.request(large, timeout=PATIENCE_S) == data
    known(b, large, "available")
    store, before = b.home / "store", moved(b, "received")
    flip(store / "blobs" / f"{large}.blob", 2 * MIB + 5)
    for pack in (store / "packs").iterdir():
        flip(pack, *range(100, pack.stat().st_size, 1000))
    slots = sealed_slots(b.home, tmp_path / "copy")
    flip(store / "keys.slots", *(slot.offset + 40 for slot in slots if slot.content_id.hex() == keyless))
    report = b.client.audit(read_data=True)
    damaged = {entry["content_id"]: entry["repaired"] for entry in report["damaged"]}
    assert damaged.keys() >= {large, small, keyless}
    assert damaged[keyless]
    assert damaged[large]
    assert damaged[small]
    assert moved(b, "received") - before < 3 * MIB
    assert b.client.request(large) == data
    assert b.client.request(small) == data[:3000]
    again = b.client.audit(read_data=True)
    assert b.client.request(keyless) == b"its key will be lost"
    assert not {large, small, keyless} & {entry["content_id"] for entry in again["damaged"]}


def test_damage_that_nobody_can_repair_is_reported(members: tuple[Member, Member, Member]) -> None:
    """The only copy, damaged: the audit says so and why it stays, and no wrong byte is served."""
    a = members[0]
    content_id = a.client.publish(secrets.token_bytes(6 * MIB)).content_id
    flip(a.home / "store" / "blobs" / f"{content_id}.blob", 5)
    report = a.client.audit(read_data=True)
    assert not report["ok"]
    (entry,) = [e for e in report["damaged"] if e["content_id"] == content_id]
    assert not entry["repaired"]
    assert "no other member" in entry["not_repaired"]
    with pytest.raises(DamagedContentError):
        a.client.request(content_id)


def test_the_command_line_sets_the_rule(members: tuple[Member, Member, Member]) -> None:
    """`serve --fetch` keeps its rule in vault.json; what makes no sense is refused."""
    b = members[1]
    b.stop()
    try:
        for wrong in (["--fetch", "some"], ["--fetch-limit", "huge"]):
            refused = subprocess.run(
                words_for(b.home, "serve", *wrong), env=ENVIRONMENT, capture_output=True, timeout=60, check=False
            )
            assert refused.returncode == 2
        done = subprocess.run(
            words_for(b.home, "serve", "--fetch", "on-request", "--fetch-limit", "1M"),
            env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "on-request" in done.stderr
        serving = subprocess.Popen(
            words_for(b.home, "serve", "--fetch", "all", "--fetch-limit", "64M", "--until-eof"),
            env=ENVIRONMENT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert serving.stderr is not None
        assert serving.stderr.readline().startswith("ready ")
        serving.communicate(timeout=60)
        kept = json.loads(Path(b.home / "vault.json").read_text())
        assert (kept["fetch"], kept["fetch_limit"], kept["fetch_space"]) == ("all", 64 * MIB, None)
    finally:
        b.start(fetch="small")
