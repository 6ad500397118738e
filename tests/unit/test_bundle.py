"""Bundles: whatever is done to a line of one, `verify` finds it; and they hold nothing that is secret."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from support.history import History
from support.log_world import Device, founded, note, open_log, proposal, publication
from walytis_vault.adapters.system import SystemClock
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bundle import format as f
from walytis_vault.bundle import verify
from walytis_vault.bundle.export import Exporter
from walytis_vault.bundle.verify import Expected, verify_bundle
from walytis_vault.cli import app
from walytis_vault.domain.batch import decode_batch
from walytis_vault.domain.errors import MisuseError
from walytis_vault.domain.events import Event, MemberAdmitted, to_dcb
from walytis_vault.domain.ids import BatchId

SMALL = 6


def exporter(log: VaultLog, device: Device) -> Exporter:
    """What a node of the device exports with."""
    return Exporter(
        log.index,
        device.signer,
        vault_id=log.chain.chain_id,
        root=log.judge.root,
        device=device.device,
        clock=SystemClock(),
    )


def write(made: Exporter, path: Path) -> dict[str, Any]:
    """All pages into a file; the last page's facts."""
    data, cursor = b"", None
    while True:
        page = made.page(cursor)
        data += page.lines
        cursor = page.cursor
        if cursor is None:
            path.write_bytes(data)
            return {"root": page.root, "digest": page.digest, "batches": page.batches, "vault_id": page.vault_id}


class Small:
    """A small vault of two members, and its bundle."""

    def __init__(self, folder: Path) -> None:
        chain, self.device, self.other = MemoryNetwork().replica("a"), Device("a"), Device("b")
        self.log = open_log(folder / "log", chain, self.device, founded(chain, self.device))
        self.log.start()
        self.log.recorder.append(
            [
                to_dcb(
                    MemberAdmitted(member=self.other.member, keys=self.other.keys(chain.chain_id), invitation=b"i" * 32)
                )
            ]
        )
        published = publication(chain.chain_id, self.device.member, nonce=b"n" * 16)
        self.log.recorder.append([to_dcb(published)])
        for number in range(SMALL - 3):
            self.log.recorder.append([to_dcb(note(number))])
        self.path = folder / "bundle"
        self.facts = write(exporter(self.log, self.device), self.path)
        self.lines = self.path.read_bytes().splitlines(keepends=True)

    def check(self, lines: list[bytes], **expected: str) -> dict[str, Any]:
        """Verify these lines."""
        path = self.path.with_name("changed")
        path.write_bytes(b"".join(lines))
        return verify_bundle(path, Expected(**expected))

    def sign(self, lines: list[bytes], device: Device | None = None) -> list[bytes]:
        """The lines of batches with a new, well-made last line, as a member could make it."""
        import hashlib

        by = device or self.device
        batches = [decode_batch(base64.b64decode(json.loads(line)["envelope"])) for line in lines[1:]]
        heads = {b.batch_id for b in batches} - {p for b in batches for p in b.body.parents()}
        end = f.End(
            batches=len(batches),
            events=sum(len(b.body.events) for b in batches),
            heads=tuple(sorted(h.hex() for h in heads)),
            digest=hashlib.sha256(b"".join(lines)).hexdigest(),
            time="2026-01-01T00:00:00.000Z",
            device=by.device,
            key_id=by.signer.key_id.hex(),
        )
        signature = base64.b64encode(by.signer.sign(f.signed_bytes(end))).decode()
        return [*lines, f.encode(msgspec.structs.replace(end, signature=signature))]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """One for all tests of this module."""
    made = Small(tmp_path_factory.mktemp("bundle"))
    yield made
    made.log.close()


def reasons(report: dict[str, Any]) -> str:
    """What was found, with the numbers of the lines."""
    return "; ".join(f"{found['line']}: {found['reason']}" for found in report["findings"])


def test_a_bundle_as_it_was_written_is_sound(small: Small) -> None:
    """It says who is a member, what was published, who exported it; and two exports are of one digest."""
    wanted = {name: small.facts[name] for name in ("vault_id", "root", "digest")}
    report = small.check(small.lines, **wanted)
    assert report["ok"], reasons(report)
    assert (report["batches"], report["events"]) == (SMALL, SMALL + 1)
    assert [m["did"] for m in report["members"]] == [small.device.member, small.other.member]
    assert report["contents"][0]["author"] == small.device.member
    assert report["exported"]["member"] == small.device.member
    assert write(exporter(small.log, small.other), small.path.with_name("b"))["digest"] == small.facts["digest"]
    assert small.check(small.path.with_name("b").read_bytes().splitlines(keepends=True))["ok"]


def test_every_line_that_is_changed_is_found(small: Small) -> None:
    """A byte of any line, a blank, another order of fields, a repeated field, another number, an end of line."""
    for number, line in enumerate(small.lines):
        fields = json.loads(line)
        middle = len(line) // 2
        changed = [
            line[:middle] + bytes([line[middle] ^ 1]) + line[middle + 1 :],
            line[:-3] + bytes([line[-3] ^ 1]) + line[-2:],
            line.replace(b'":', b'": ', 1),
            json.dumps(dict(reversed(fields.items())), separators=(",", ":")).encode() + b"\n",
            line.replace(b"{", b'{"more":1,', 1),
            line[:-1] + b" \n",
            line[:-1] + b"\r\n",
            line[:-2] + b"\n",
            b"\n",
            b"",
        ]
        for name, value in fields.items():
            other: Any = value + 1 if isinstance(value, int) else value[:-1] if value else ["x"]
            changed.append(json.dumps({**fields, name: other}, separators=(",", ":")).encode() + b"\n")
        for text in changed:
            assert text != line
            report = small.check([*small.lines[:number], text, *small.lines[number + 1 :]])
            assert not report["ok"], (number, text[:80])
            assert all(found["line"] >= number for found in report["findings"])


def test_lines_removed_repeated_moved_or_cut_off_are_found(small: Small) -> None:
    """Also when the member's own key signs the remaining lines anew, unless they are a state that there was."""
    lines = small.lines
    for number in range(len(lines)):
        assert not small.check(lines[:number] + lines[number + 1 :])["ok"]
        assert not small.check(lines[: number + 1] + lines[number:])["ok"]
        assert not small.check(lines[:number])["ok"]
        if number + 1 < len(lines):
            assert not small.check([*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]])["ok"]
    cut = b"".join(lines)
    for size in (1, 2, 100, len(lines[-1]) // 2, len(lines[-1]), len(lines[-1]) + 1):
        assert not small.check([cut[:-size]])["ok"]
    for more in (b"\n", b" ", lines[-1], lines[2]):
        assert not small.check([*lines, more])["ok"]


def test_a_member_cannot_leave_out_or_reorder_what_others_built_on(small: Small) -> None:
    """Signed anew by a member: holes and moved lines are found by the batches' own causes and the one order."""
    body = small.lines[:-1]
    for number in range(1, len(body) - 1):
        assert "cause" in reasons(small.check(small.sign(body[:number] + body[number + 1 :])))
        moved = [*body[:number], body[number + 1], body[number], *body[number + 2 :]]
        assert not small.check(small.sign(moved))["ok"]


def test_an_earlier_state_is_found_by_the_digest_alone(small: Small) -> None:
    """A member may show an old state of the vault: it is sound, and not the state that was asked for."""
    earlier = small.sign(small.lines[:-2])
    assert small.check(earlier)["ok"]
    assert "another state" in reasons(small.check(earlier, digest=small.facts["digest"]))


def test_only_members_may_sign_the_last_line(small: Small) -> None:
    """A stranger's key, and a member's name under another's key, are found; and another vault's root is."""
    assert "nobody who may" in reasons(small.check(small.sign(small.lines[:-1], Device("z"))))
    thief = Device("z")
    thief.device = small.device.device
    assert "nobody who may" in reasons(small.check(small.sign(small.lines[:-1], thief)))
    assert "founding batch" in reasons(small.check(small.lines, root="00" * 32))
    assert "another vault" in reasons(small.check(small.lines, vault_id="Qm"))


def test_an_added_batch_of_a_stranger_is_found(small: Small) -> None:
    """A batch that is well-made but by nobody's key does not get in."""
    previous = decode_batch(base64.b64decode(json.loads(small.lines[-2])["envelope"]))
    alien = Device("z").batch(small.log.chain.chain_id, [note(9)], number=1, heads=[previous.batch_id])
    line = f.encode(f.batch_line(alien, n=SMALL + 1, depth=SMALL + 1))
    assert "not announced" in reasons(small.check(small.sign([*small.lines[:-1], line])))


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"\x00" * 1000, b"[" * 100_000, b'{"type":"end"}\n'])
def test_what_is_no_bundle_is_told_so(tmp_path: Path, data: bytes) -> None:
    """Other files, nested and endless lines end in a finding."""
    (tmp_path / "file").write_bytes(data)
    assert verify_bundle(tmp_path / "file")["findings"][0]["line"] == 1
    with pytest.raises(MisuseError):
        verify_bundle(tmp_path / "none")


def test_a_line_without_an_end_takes_no_memory(small: Small) -> None:
    """A line of 64 MiB is refused after as much as a line may have."""
    assert "longer than any line" in reasons(small.check([small.lines[0], b"x" * (64 << 20)]))


@pytest.mark.parametrize("seed", range(2))
def test_any_past_makes_a_sound_bundle(tmp_path: Path, seed: int) -> None:
    """Removals, forks of time, ballots: what a node accepted verifies, whatever the order in which it came."""
    network = MemoryNetwork(seed, manual=True)
    chain = network.replica("a")
    history = History(chain.chain_id, seed, 40, contents=True)
    from support.history import device

    digests = set()
    for name in ("x", "y"):
        order = list(history.batches.values())
        network.random.shuffle(order)
        log = open_log(tmp_path / name, chain, device("m0"), BatchId(history.root))
        for batch in order:
            chain.append(batch.envelope())
        log.reconciler.catch_up()
        digests.add(write(exporter(log, device("m0")), tmp_path / "bundle")["digest"])
        log.close()
        found = [f for f in verify_bundle(tmp_path / "bundle")["findings"] if "nobody who may" not in f["reason"]]
        assert found == []
    assert len(digests) == 1


def test_what_is_forgotten_is_counted_beyond_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary lists some contents and counts all; the command line shows the counts."""
    monkeypatch.setattr(verify, "LISTED", 2)
    chain, device = MemoryNetwork().replica("a"), Device("a")
    log = open_log(tmp_path, chain, device, founded(chain, device))
    log.start()
    vault, me = chain.chain_id, device.member
    published = [publication(vault, me, nonce=bytes([n]) * 16) for n in range(9)]
    gone = [event.content_id for event in published[4:]]
    events: list[Event] = [*published, proposal(vault, me, gone, [me])]
    for event in events:
        log.recorder.append([to_dcb(event)])
    write(exporter(log, device), tmp_path / "bundle")
    log.close()
    report = verify_bundle(tmp_path / "bundle")
    assert (len(report["contents"]), report["contents_total"], report["contents_forgotten"]) == (2, 9, 5)
    shown = CliRunner().invoke(app.application(), ["verify", str(tmp_path / "bundle")]).output
    assert "9: 5 forgotten" in shown
