"""Whoever knows the chain's id: may read blocks and append any, and gets nothing accepted, told or given."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support import kubo_actions, outsider_actions
from support.canaries import find_canaries
from support.hostile_member import address_of
from support.log_world import Device, note
from support.peer_nodes import Member, agree, eventually, found_and_join, stop_all
from support.walytis_child import RemoteChain, WalytisChild
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import ENVELOPE_BYTES, SignedBatch, decode_batch
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.limits import LIMITS
from walytis_vault.peers import protocol as p

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
JUNK = 10_000
AT_A_TIME = 1_000
SIBLINGS = 1_000
AT_ONCE = 100
"""Siblings in one call."""
GROWTH_MIB = 100
"""What a node's memory may grow by while junk comes in: caches that are bounded, not the junk."""
GO_HEAP = range(0xC000000000, 0xD000000000)
"""Where Go keeps its heap (linux/amd64). The embedded kubo keeps 40-60 KiB of it for each block that it downloads from
anybody, junk or not, until the process ends, and offers no way to let go of them: not counted here, see SECURITY.md."""


class Outsider:
    """A real node of its own that has a copy of the chain and is connected to a member's node."""

    def __init__(self, folder: Path, of: Member) -> None:
        vault_id = self.vault_id = of.client.status().vault_id
        address = address_of(of)
        self.peer_id = address.rpartition("/")[2]
        shutil.copytree(of.home / "walytis" / vault_id, folder / "vault" / "walytis" / vault_id)
        self.child = WalytisChild(folder, peers=(address,))
        self.child.call("connect", address=address)
        self.chain: RemoteChain = self.child.open_chain(vault_id)

    def batches(self) -> list[SignedBatch]:
        """All that the members wrote, as anybody can read it."""
        found = []
        for ref in self.chain.blocks():
            try:
                found.append(decode_batch(self.chain.read(ref)))
            except UntrustedInputError:
                continue
        return found

    def run(self, function: str, **arguments: Any) -> Any:
        """Have the child try something at the member's door."""
        arguments = {"vault_id": self.vault_id, "peer_id": self.peer_id, **arguments}
        return self.child.call("run", module=outsider_actions.__name__, function=function, arguments=arguments)


Scene = tuple[Member, Member, Outsider]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two members and an outsider."""
    folder = tmp_path_factory.mktemp("outsiders")
    members = found_and_join(folder, "a", "b")
    outsider = None
    try:
        outsider = Outsider(folder / "outsider", members[0])
        yield members[0], members[1], outsider
    finally:
        if outsider is not None:
            outsider.child.kill()
        stop_all(members)


def resident(member: Member) -> float:
    """Resident memory of a node without kubo's heap, in MiB (Linux)."""
    assert member.node is not None
    kib, counts = 0, True
    for line in Path(f"/proc/{member.node.pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line):
            counts = int(mapping[1], 16) not in GO_HEAP
        elif line.startswith("Rss:") and counts:
            kib += int(line.split()[1])
    return kib / 1024


def refused(member: Member) -> int:
    """How many blocks the node has refused or parked, or takes for those of a newer version."""
    blocks = member.client.status().blocks
    return sum(blocks.get(verdict, 0) for verdict in ("refused", "waiting", "unreadable"))


def forgeries(outsider: Outsider) -> dict[str, bytes]:
    """One of each class, made from what the chain shows."""
    honest = outsider.batches()
    last = max(honest, key=lambda b: b.body.number)
    body, envelope, vault = last.body, last.envelope(), outsider.vault_id
    stranger, posing = Device("outsider"), Device("posing")
    posing.device = posing.member = body.author

    def after(*events: ev.Event) -> bytes:
        """What would follow the member's last batch."""
        return posing.batch(vault, events, number=body.number + 1, previous=last.batch_id).envelope()

    invitation = secrets.token_bytes(32)
    admitted = ev.MemberAdmitted(member=stranger.member, keys=stranger.keys(vault), invitation=invitation)
    erased = ev.ContentErased(contents=(secrets.token_bytes(16),), ballot_id=secrets.token_bytes(16))
    refounded = [ev.VaultFounded(founder=stranger.member, group="did:x"), ev.KeyAnnounced(keys=stranger.keys(vault))]
    return {
        "no batch": b"\x01" + secrets.token_bytes(100),
        "random of a batch's size": b"\x01" + secrets.token_bytes(len(envelope) - 1),
        "another version": b"\x02" + envelope[1:],
        "cut": envelope[:-1],
        "prolonged": envelope + b"\0",
        "a changed body": envelope[:-1] + bytes([envelope[-1] ^ 1]),
        "a changed classical signature": envelope[:5] + bytes([envelope[5] ^ 1]) + envelope[6:],
        "a changed post-quantum signature": envelope[:500] + bytes([envelope[500] ^ 1]) + envelope[501:],
        "another batch's signature": envelope[:ENVELOPE_BYTES] + after(note(1))[ENVELOPE_BYTES:],
        "by an unknown key": stranger.batch(vault, [note(2)], number=1, heads=[last.batch_id]).envelope(),
        "in a member's name": after(note(3)),
        "in a member's name with its key's id": stranger.batch(
            vault, [note(4)], number=1, heads=[last.batch_id], signer=posing.signer
        ).envelope(),
        "admitting itself": stranger.batch(vault, [admitted], number=1, heads=[last.batch_id]).envelope(),
        "admitting itself in a member's name": after(admitted),
        "announcing a key for a member": after(ev.KeyAnnounced(keys=posing.keys(vault))),
        "founding again": stranger.batch(vault, refounded, number=1).envelope(),
        "removing a member": after(ev.MemberRemoved(member=body.author, accepted=())),
        "forgetting": after(erased),
        "of another vault": stranger.batch("QmOther", [note(5)], number=1, heads=[last.batch_id]).envelope(),
        "with a cause that is not there": stranger.batch(
            vault, [note(6)], number=1, heads=[secrets.token_bytes(32)]
        ).envelope(),
        "nested too deep": envelope[:ENVELOPE_BYTES] + b"\x91" * 50_000,
        "too large": envelope[:ENVELOPE_BYTES] + bytes(LIMITS.batch_body + 1),
    }


def test_every_class_of_forgery_is_refused_and_a_repetition_changes_nothing(scene: Scene) -> None:
    """Each forged batch is counted and kept out by both; a repeated batch is no news; the vault goes on."""
    a, b, outsider = scene
    content_id = a.client.publish(b"honest", name="honest").content_id
    eventually(lambda: b.state(content_id) == "available", "the members share it")
    eventually(lambda: len(outsider.batches()) >= 4, "the outsider reads the chain")
    before, positions = [refused(m) for m in (a, b)], [m.client.status().position for m in (a, b)]
    honest = outsider.batches()
    forged = forgeries(outsider)
    for envelope in forged.values():
        outsider.chain.append(envelope)
    for batch in honest:
        outsider.chain.append(batch.envelope())
    for member, counted in zip((a, b), before, strict=True):
        eventually(lambda m=member, c=counted: refused(m) - c >= len(forged), "each is refused")  # type: ignore[misc]
        assert refused(member) - counted == len(forged)
    assert [m.client.status().position for m in (a, b)] == positions
    assert len(a.client.members()) == 2
    ours = b.client.publish(b"and on").content_id
    eventually(lambda: a.state(ours) == "available", "the members go on")
    agree(a, b)
    assert a.client.audit()["ok"]
    assert b.client.audit()["ok"]


def test_the_door_gives_an_outsider_nothing(scene: Scene) -> None:
    """With keys of its own, an invented invitation or no encryption it gets no answer to any request."""
    a, _, outsider = scene
    content_id = bytes.fromhex(a.client.publish(b"not for you").content_id)
    server_key = _bus_key(outsider, a.did)
    requests: list[p.Request] = [
        p.Hello(addresses=(), known={}, have={}),
        p.Pull(have={}),
        p.Push(),
        p.Fetch(content_id=content_id),
        p.Leaves(content_id=content_id, start=0),
        p.Segment(content_id=content_id, number=0),
        p.JoinGroup(),
        p.ChainSize(),
        p.Admit(keys=b"", addresses=()),
    ]
    for request in requests:
        raw = msgspec.msgpack.encode(request)
        for secret in (None, secrets.token_bytes(32)):
            assert outsider.run("ask", server_key=server_key, request=raw, secret=secret) == ["timeout", []]
    assert not outsider.run("plain", request=msgspec.msgpack.encode(requests[0]))


def test_junk_is_kept_out_in_bounded_memory_and_confirms_no_guess(scene: Scene) -> None:
    """Thousands of junk blocks: none accepted, honest events pass in between, and the chain confirms no guess."""
    a, b, outsider = scene
    text, name = b"the secret that somebody guesses", "the name that somebody guesses"
    size = 123_457
    content_id = a.client.publish(text + bytes(size - len(text)), name=name, media_type="text/x-guess").content_id
    eventually(lambda: b.state(content_id) == "available", "the members share it")
    before = {m.home: refused(m) for m in (a, b)}
    positions, memory = a.client.status().position, [resident(m) for m in (a, b)]
    honest = 0
    for start in range(0, JUNK, AT_A_TIME):
        junk = [secrets.token_bytes(20) + b"%d" % n for n in range(start, start + AT_A_TIME)]
        outsider.chain.append_many(junk, threads=2)
        ours = a.client.publish(b"in between %d" % start).content_id
        eventually(lambda o=ours: b.state(o) == "available", "honest events pass")  # type: ignore[misc]
        honest += 1
        for member in (a, b):
            wanted = before[member.home] + start + AT_A_TIME
            eventually(lambda m=member, n=wanted: refused(m) >= n, "all of that junk has arrived", 120)  # type: ignore[misc]
    assert [refused(m) - before[m.home] for m in (a, b)] == [JUNK, JUNK]
    assert a.client.status().position == positions + honest
    assert max(resident(m) - then for m, then in zip((a, b), memory, strict=True)) < GROWTH_MIB
    agree(a, b)
    guesses: dict[str, bytes] = {"text": text, "name": name.encode(), "type": b"text/x-guess-----"[:12] + b"guess"}
    for what, known in {"text": text, "content": text + bytes(size - len(text)), "name": name.encode()}.items():
        for digest in ("sha1", "sha256", "sha512", "blake2b", "blake2s", "sha3_256", "md5"):
            guesses[f"{digest} of {what}"] = hashlib.new(digest, known).digest()
    assert find_canaries(outsider.child.cwd.parent / "vault", guesses) == []


def test_siblings_stop_nobody_and_change_no_block(scene: Scene) -> None:
    """Very many blocks beside the last one: the members write, audit and start again as before."""
    a, b, outsider = scene
    before = {m.home: refused(m) for m in (a, b)}
    for _ in range(0, SIBLINGS, AT_ONCE):
        arguments = {"chain_id": outsider.vault_id, "count": AT_ONCE}
        outsider.child.call("run", module=kubo_actions.__name__, function="spread_siblings", arguments=arguments)
    for member in (a, b):
        eventually(lambda m=member: refused(m) - before[m.home] >= SIBLINGS * 0.9, "they arrive", 120)  # type: ignore[misc]
    written = [m.client.publish(b"among siblings").content_id for m in (a, b)]
    for member in (a, b):
        eventually(lambda m=member: [m.state(i) for i in written] == ["available"] * 2, "both are here")  # type: ignore[misc]
    for member in (a, b):
        member.stop()
        member.start()
    after = a.client.publish(b"after a restart").content_id
    eventually(lambda: b.state(after) == "available", "the members go on")
    for member in (a, b):
        assert member.client.audit()["ok"]
    agree(a, b)
    eventually(lambda: len(outsider.batches()) >= 4, "the outsider reads the chain")
    honest = {b.envelope() for b in outsider.batches()}
    assert max(len(ref.parents) for ref in outsider.chain.blocks() if outsider.chain.read(ref) in honest) < 5


def _bus_key(outsider: Outsider, device: str) -> bytes:
    """The key of a member's door, which the chain tells everybody."""
    for batch in outsider.batches():
        for record in batch.body.events:
            if record.topic in (ev.KeyAnnounced.TOPIC, ev.MemberAdmitted.TOPIC):
                event = ev.PRODUCT_EVENTS.decode(record.topic, record.payload)
                if isinstance(event, ev.KeyAnnounced | ev.MemberAdmitted) and event.keys.device == device:
                    return event.keys.bus
    raise AssertionError("the chain does not tell the key")
