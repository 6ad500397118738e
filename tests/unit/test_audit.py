"""The audit on logs of every kind: nothing that the index says is believed, and each wrong thing is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.history import History
from support.log_world import Device, founded, note, open_log, proposal, publication
from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.walytis.log_audit import LogReport, audit_log
from walytis_vault.adapters.walytis.memory_chain import GENESIS_BLOCKS, MemoryNetwork
from walytis_vault.adapters.walytis.second_log import SecondLog
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.batch import seal_batch
from walytis_vault.domain.events import ContentErased, to_dcb
from walytis_vault.domain.ids import BatchId
from walytis_vault.ledger_account import Account, read_account


def look(log: VaultLog) -> tuple[LogReport, Account]:
    """Audit a log; give its report and the account."""
    with SecondLog(vault_id=log.chain.chain_id, root=log.judge.root, verifier=HybridVerifier()) as again:
        return audit_log(log, again), read_account(again)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[VaultLog]:
    """A vault of one with a few batches."""
    chain, device = MemoryNetwork().replica("a"), Device("a")
    opened = open_log(tmp_path, chain, device, founded(chain, device))
    opened.start()
    for number in range(6):
        opened.recorder.append([to_dcb(note(number))])
    yield opened
    opened.close()


def test_a_sound_log_is_sound(log: VaultLog) -> None:
    """Every batch is read from its block and nothing is found."""
    report, account = look(log)
    assert (report.findings, report.batches, report.events, report.not_on_chain) == ((), 7, 8, 0)
    assert [m["did"] for m in account.members] == list(log.membership().active())


CHANGES = {
    "number": "UPDATE batches SET number = 50 WHERE seq = 3",
    "time": "UPDATE batches SET time_ms = time_ms + 1 WHERE seq = 3",
    "author": "UPDATE batches SET author = 'did:test:b' WHERE seq = 3",
    "device": "UPDATE batches SET device = 'did:test:b' WHERE seq = 3",
    "depth": "UPDATE batches SET depth = depth + 1 WHERE seq = 3",
    "signing key": "UPDATE batches SET key_id = zeroblob(32) WHERE seq = 3",
    "counts": "UPDATE batches SET void = 1 WHERE seq = 3",
    "bytes": "UPDATE batches SET envelope = zeroblob(4000) WHERE seq = 3",
    "other events": "UPDATE events SET data = x'80' WHERE batch = 3",
    "other events than": "UPDATE events SET tags = x'90' WHERE batch = 3",
    "does not have it": "DELETE FROM events WHERE batch = 3; DELETE FROM batches WHERE seq = 3",
    "not on this node's chain": "UPDATE batches SET block = zeroblob(16) WHERE seq = 3",
    "another|does not have it|cannot be|does not hold": "UPDATE batches SET batch_id = zeroblob(32) WHERE seq = 3",
}


@pytest.mark.parametrize("reason", CHANGES)
def test_whatever_the_index_says_wrongly_is_found(log: VaultLog, reason: str) -> None:
    """A row of the index that was changed behind the node's back does not pass."""
    with log.index.database.transaction() as connection:
        connection.execute(CHANGES[reason])
    findings = " ".join(f.reason for f in look(log)[0].findings)
    assert any(part in findings for part in reason.split("|")), findings


def test_a_batch_that_was_signed_twice_makes_no_honest_node_look_wrong(tmp_path: Path) -> None:
    """One signature came by a member, another by the chain: both are valid, so nothing is found; a forged one is."""
    chain, device = MemoryNetwork(manual=True).replica("a"), Device("a")
    root = founded(chain, device)
    log = open_log(tmp_path, chain, device, root)
    log.reconciler.catch_up()
    one = device.batch(chain.chain_id, [note(1)], number=2, previous=root)
    two = seal_batch(one.body, device.signer)
    assert one.batch_id == two.batch_id
    assert one.envelope() != two.envelope()
    log.reconciler.accept([one.envelope()])
    for batch in (two, one):
        chain.append(batch.envelope())
        log.reconciler.catch_up()
        assert look(log)[0].findings == ()
    forged = one.envelope()[:100] + bytes([one.envelope()[100] ^ 1]) + one.envelope()[101:]
    with log.index.database.transaction() as connection:
        connection.execute("UPDATE batches SET envelope = ? WHERE seq = 2", (forged,))
    assert "bytes that its block does not" in look(log)[0].findings[0].reason
    log.close()


def test_an_event_that_was_slipped_in_is_found(log: VaultLog) -> None:
    """An event of the index that no block holds is found."""
    with log.index.database.transaction() as connection:
        connection.execute("INSERT INTO events SELECT position + 100, batch, idx + 1, topic, data, tags FROM events")
    assert look(log)[0].findings


@pytest.mark.parametrize("seed", range(2))
def test_random_pasts_with_removals_and_ballots_are_judged_alike(tmp_path: Path, seed: int) -> None:
    """Whatever members did, and in whatever order it came, the audit comes to the node's own verdicts."""
    network = MemoryNetwork(seed, manual=True)
    chain = network.replica("a")
    history = History(chain.chain_id, seed, 60, contents=True)
    order = list(history.batches.values())
    network.random.shuffle(order)
    for batch in order:
        chain.append(batch.envelope())
    chain.append(b"junk that anybody may write")
    log = open_log(tmp_path, chain, Device("reader"), BatchId(history.root))
    log.reconciler.catch_up()
    report, account = look(log)
    log.close()
    assert report.findings == ()
    waiting = report.blocks.get("waiting", 0)
    assert report.batches + waiting + report.blocks["refused"] == 60 + GENESIS_BLOCKS + 1
    assert report.batches > 25
    assert all(block["reason"] for block in report.refused)
    assert account.contents
    for row in account.ballots:
        assert set(row["consents"]) <= set(row["electorate"])


def test_an_account_names_what_does_not_count(log: VaultLog) -> None:
    """A receipt for a ballot that never was, and a proposal that asks a stranger only, are told."""
    vault, (me,) = log.chain.chain_id, log.membership().active()
    published = publication(vault, me, nonce=b"n" * 16)
    lone = proposal(vault, me, [published.content_id], ["did:test:z"])
    asked = proposal(vault, me, [published.content_id], [me, "did:test:z"])
    early = ContentErased(contents=(published.content_id,), ballot_id=asked.ballot_id)
    for event in (published, early, lone, asked):
        log.recorder.append([to_dcb(event)])
    report, account = look(log)
    assert report.findings == ()
    assert any("does not ask every member" in line for line in account.odd)
    assert any("did not carry" in line for line in account.odd)
    row: dict[str, Any] = account.ballots[0]
    assert (row["state"], row["missing"], row["asked_strangers"]) == ("open", ["did:test:z"], ["did:test:z"])
    (content_row,) = account.contents
    assert (content_row["author"], content_row["agreed"]) == (me, [me])
