"""What a member gains by signing onto an early past, or by a second batch under a number that it has used: nothing.

Each case is a batch that only the member's own choice of causes makes early. The honest log must go on as before:
nobody's name, key, content or ballot is taken over, nothing is forced, and nothing that carried is undone.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.log_world import Device, founded, note, open_log, proposal, publication
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.claims import prove_possession
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.reading import Reading, read_state


class Vault:
    """A founder, a member M that was let in early and knows only that, and X, who came later and has written."""

    def __init__(self, folder: Path, policy: str) -> None:
        self.network = MemoryNetwork(1, manual=True)
        chain = self.network.replica("founder")
        self.id = chain.chain_id
        self.f, self.m, self.x = Device("founder"), Device("m"), Device("x")
        self.root = founded(chain, self.f, policy)
        self.log: VaultLog = open_log(folder, chain, self.f, self.root)
        self.log.start()
        self.invitation = secrets.token_bytes(32)
        self.let_in = self.say(ev.MemberAdmitted(member=self.m.member, keys=self.m.keys(self.id), invitation=bytes(32)))
        self.m1 = self.hear(self.m.batch(self.id, [note(1)], number=1, heads=[self.let_in]))
        for number in range(10):
            self.say(note(number))
        self.x_keys = self.x.keys(self.id)
        after_x = self.say(ev.MemberAdmitted(member=self.x.member, keys=self.x_keys, invitation=self.invitation))
        self.x1 = self.hear(self.x.batch(self.id, [note(2)], number=1, heads=[after_x]))
        self.content = publication(self.id, self.x.member, nonce=secrets.token_bytes(16))
        self.x2 = self.hear(self.x.batch(self.id, [self.content], number=2, previous=self.x1))

    def say(self, *events: ev.Event) -> bytes:
        """The founder writes; returns its last batch's id."""
        self.log.recorder.append(ev.to_dcb_all(events))
        return self.tip(self.f)

    def tip(self, device: Device) -> bytes:
        """Id of a device's last batch."""
        with self.log.index.database.read() as connection:
            last = self.log.index.last_batch_of(connection, device.device)
        assert last is not None
        return last.batch_id

    def hear(self, batch: SignedBatch) -> bytes:
        """Take in a batch that must be accepted."""
        assert not self.log.reconciler.accept([batch.envelope()])
        with self.log.index.database.read() as connection:
            assert self.log.index.batch(connection, batch.batch_id) is not None
        return batch.batch_id

    def try_early(self, *events: ev.Event) -> bool:
        """M signs onto its own first batch alone; whether that was accepted."""
        return self.try_batch(self.m.batch(self.id, events, number=2, previous=self.m1))

    def try_batch(self, batch: SignedBatch) -> bool:
        """Whether a batch is accepted. One that is refused must be so with a reason of ours."""
        try:
            self.log.reconciler.accept([batch.envelope()])
        except UntrustedInputError:
            return False
        with self.log.index.database.read() as connection:
            return self.log.index.batch(connection, batch.batch_id) is not None

    def read(self) -> Reading:
        """What the log says about X's content."""
        return read_state(self.log.recorder, [self.content.content_id])

    def x_is_unharmed(self) -> None:
        """X is a member under its own key, its content is its own, and its next batch counts."""
        members = self.log.membership()
        assert self.x.member in members.active()
        assert members.refusal(self.x.signer.key_id, self.x.device) is None
        state = self.read().state
        assert state.publications[self.content.content_id].author == self.x.member
        assert state.publications[self.content.content_id].expires_ms is None
        assert state.verdict(self.content.content_id).forgetting == "none"
        self.x2 = self.hear(self.x.batch(self.id, [note(3)], number=3, previous=self.x2))
        with self.log.index.database.read() as connection:
            assert next(connection.execute("SELECT count(*) FROM batches WHERE void = 1"))[0] == 0


@pytest.fixture(params=ev.REMOVAL_POLICIES)
def vault(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Vault]:
    """The same under either policy."""
    made = Vault(tmp_path, request.param)
    yield made
    made.log.close()


def as_x(vault: Vault, **changes: str) -> ev.DeviceKeys:
    """Keys of M's making that pretend to be X's, with a proof by themselves."""
    fake = Device("fake")
    names = {"member": vault.x.member, "device": vault.x.device, **changes}
    return prove_possession(msgspec.structs.replace(fake.keys(vault.id), **names), vault.id, fake.signer)


CLAIMS: dict[str, Callable[[Vault], ev.Event]] = {
    "X's name with other keys": lambda v: ev.MemberAdmitted(
        member=v.x.member, keys=as_x(v), invitation=secrets.token_bytes(32)
    ),
    "X's device for M": lambda v: ev.KeyAnnounced(keys=as_x(v, member=v.m.member)),
    "X's keys for M's device": lambda v: ev.KeyAnnounced(
        keys=msgspec.structs.replace(v.x_keys, member=v.m.member, device=v.m.device)
    ),
    "X's keys under a name that fits them": lambda v: ev.KeyAnnounced(
        keys=msgspec.structs.replace(v.x_keys, member=v.m.member)
    ),
    "X's keys without a proof": lambda v: ev.MemberAdmitted(
        member=v.x.member, keys=msgspec.structs.replace(v.x_keys, proof=b""), invitation=secrets.token_bytes(32)
    ),
    "X's keys with another door key": lambda v: ev.MemberAdmitted(
        member=v.x.member, keys=msgspec.structs.replace(v.x_keys, bus=bytes(32)), invitation=secrets.token_bytes(32)
    ),
    "a name that no key is in": lambda v: ev.KeyAnnounced(keys=as_x(v, member=v.m.member, device="did:test:anything")),
    "X's content": lambda v: msgspec.structs.replace(v.content, expires_ms=1),
    "X's content, as it was": lambda v: v.content,
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_nobody_claims_what_is_anothers(vault: Vault, claim: str) -> None:
    """However early its causes are, a batch that claims another's name, key or content is refused."""
    assert not vault.try_early(CLAIMS[claim](vault))
    vault.x_is_unharmed()


def test_an_invitation_is_spent_only_by_who_gave_it_out(vault: Vault) -> None:
    """M admits somebody with the invitation that let X in: X stays who it is."""
    ghost = Device("ghost")
    keys = ghost.keys(vault.id)
    assert vault.try_early(ev.MemberAdmitted(member=ghost.member, keys=keys, invitation=vault.invitation))
    vault.x_is_unharmed()


def test_who_is_admitted_again_stays_who_it_is(vault: Vault) -> None:
    """M repeats X's admission, keys and proof included, before it: X stays, also when M is removed with that batch."""
    again = ev.MemberAdmitted(member=vault.x.member, keys=vault.x_keys, invitation=secrets.token_bytes(32))
    early = vault.m.batch(vault.id, [again], number=2, previous=vault.m1)
    vault.say(ev.MemberRemoved(member=vault.m.member, accepted=()))
    assert vault.try_batch(early)
    members = vault.log.membership()
    assert members.active() == tuple(sorted((vault.f.member, vault.x.member)))
    assert members.members[vault.x.member].admitted_by == vault.f.member
    assert members.refusal(vault.x.signer.key_id, vault.x.device) is None


def test_a_proposal_from_the_time_before_forces_nothing(vault: Vault) -> None:
    """The founder goes back to when it was alone, and M to when X was not there: neither decides about X's content."""
    alone = proposal(vault.id, vault.f.member, [vault.content.content_id], [vault.f.member])
    back = vault.f.batch(vault.id, [alone], number=2, previous=vault.root)
    assert vault.try_batch(back)
    two = proposal(vault.id, vault.m.member, [vault.content.content_id], [vault.m.member, vault.f.member])
    assert vault.try_early(two)
    consent = ev.ForgettingConsented(ballot_id=two.ballot_id)
    assert vault.try_batch(vault.f.batch(vault.id, [consent], number=3, previous=back.batch_id))
    vault.x_is_unharmed()


def test_what_was_carried_stays_so(vault: Vault) -> None:
    """An early refusal, an early withdrawal, and other questions under the ballot's id change nothing afterwards."""
    everybody = vault.log.membership().active()
    asked = proposal(vault.id, vault.f.member, [vault.content.content_id], everybody)
    tip = vault.say(asked)
    consent = ev.ForgettingConsented(ballot_id=asked.ballot_id)
    vault.hear(vault.m.batch(vault.id, [consent], number=2, previous=vault.m1, heads=[tip]))
    vault.hear(vault.x.batch(vault.id, [consent], number=3, previous=vault.x2, heads=[tip]))
    assert vault.read().state.verdict(vault.content.content_id).forgetting == "carried"
    assert vault.try_early(
        ev.ForgettingRefused(ballot_id=asked.ballot_id), ev.ForgettingWithdrawn(ballot_id=asked.ballot_id)
    )
    other = msgspec.structs.replace(asked, contents=(bytes(16),))
    assert not vault.try_batch(vault.m.batch(vault.id, [other], number=2, previous=vault.m1, time_ms=1))
    assert not vault.try_batch(vault.m.batch(vault.id, [asked], number=2, previous=vault.m1, time_ms=2))
    ballot = vault.read().state.ballots.ballot(asked.ballot_id)
    assert ballot is not None
    assert ballot.state == "carried"
    assert vault.read().state.verdict(vault.content.content_id).forgetting == "carried"


def test_a_device_renews_no_keys_but_its_own(vault: Vault) -> None:
    """Another device of a member neither supersedes a device's keys nor announces new ones for it."""
    second = Device("m2", vault.m)
    m2 = vault.hear(vault.m.batch(vault.id, [ev.KeyAnnounced(keys=second.keys(vault.id))], number=2, previous=vault.m1))
    evil = Device("evil")
    names = {"member": vault.m.member, "device": vault.m.device}
    keys = prove_possession(msgspec.structs.replace(evil.keys(vault.id), **names), vault.id, evil.signer)
    stolen = ev.KeyAnnounced(keys=keys, supersedes=vault.m.signer.key_id)
    assert not vault.try_batch(second.batch(vault.id, [stolen], number=1, heads=[m2]))
    own = ev.KeyAnnounced(keys=second.keys(vault.id), supersedes=vault.m.signer.key_id)
    assert vault.try_batch(second.batch(vault.id, [own], number=1, heads=[m2]))
    assert vault.log.membership().refusal(vault.m.signer.key_id, vault.m.device) is None


def _removed(vault: Vault) -> Sequence[bytes]:
    """M writes three batches and is removed; returns their ids."""
    ids = [vault.m1]
    for number in (2, 3):
        ids.append(vault.hear(vault.m.batch(vault.id, [note(number)], number=number, previous=ids[-1])))
    vault.say(ev.MemberRemoved(member=vault.m.member, accepted=()))
    assert vault.m.member not in vault.log.membership().active()
    return ids


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_removed_member_writes_nothing_under_numbers_that_count(vault: Vault, number: int) -> None:
    """A second batch under any number, and what follows it, is void: publications, admissions and removals."""
    ids = _removed(vault)
    ghost = Device("ghost")
    heads = [vault.let_in] if number == 1 else []
    mine = publication(vault.id, vault.m.member, nonce=secrets.token_bytes(16))
    admits = ev.MemberAdmitted(member=ghost.member, keys=ghost.keys(vault.id), invitation=secrets.token_bytes(32))
    previous = ids[number - 2] if number > 1 else b""
    one = vault.m.batch(vault.id, [mine], number=number, previous=previous, heads=heads, time_ms=1)
    two = vault.m.batch(vault.id, [admits], number=number + 1, previous=one.batch_id)
    three = ghost.batch(vault.id, [note(5)], number=1, heads=[two.batch_id])
    for batch in (one, two, three):
        assert vault.try_batch(batch)
    state = read_state(vault.log.recorder, [mine.content_id]).state
    assert mine.content_id not in state.publications
    assert ghost.member not in vault.log.membership().active()
    assert not vault.log.membership().stands(ghost.device)
    with vault.log.index.database.read() as connection:
        rows: list[Any] = connection.execute("SELECT batch_id FROM batches WHERE void = 1").fetchall()
    void = {bytes(row[0]) for row in rows}
    assert void == {b.batch_id for b in (one, two, three)}


def test_forks_and_removals_settle_alike_in_every_order(tmp_path: Path) -> None:
    """Two sides of a fork, what follows them, and a removal that knew one side: every order gives one verdict."""
    origin = Vault(tmp_path / "origin", ev.ANY_MEMBER)
    left = origin.m.batch(origin.id, [note(20)], number=2, previous=origin.m1, time_ms=1)
    right = origin.m.batch(origin.id, [note(21)], number=2, previous=origin.m1, time_ms=2)
    after_left = origin.m.batch(origin.id, [note(22)], number=3, previous=left.batch_id)
    after_right = origin.m.batch(origin.id, [note(23)], number=3, previous=right.batch_id)
    cut = ev.LastBatch(device=origin.m.device, number=2, batch_id=left.batch_id)
    removal = origin.x.batch(
        origin.id,
        [ev.MemberRemoved(member=origin.m.member, accepted=(cut,))],
        number=3,
        previous=origin.x2,
        heads=[left.batch_id],
    )
    batches = (left, right, after_left, after_right, removal)
    shared = origin.log.index.envelopes_beyond({}, [d.device for d in (origin.f, origin.m, origin.x)], 100)
    outcomes = set()
    for number, order in enumerate(itertools.permutations(batches)):
        chain = origin.network.replica(f"other {number}")
        log = open_log(tmp_path / str(number), chain, origin.f, origin.log.judge.root)
        log.reconciler.accept(shared)
        for batch in order:
            log.reconciler.accept([batch.envelope()])
        log.reconciler.accept([batch.envelope() for batch in batches])
        with log.index.database.read() as connection:
            sql = "SELECT batch_id FROM batches WHERE void = 1 ORDER BY 1"
            rows: list[Any] = connection.execute(sql).fetchall()
            known = next(connection.execute("SELECT count(*) FROM batches"))[0]
        outcomes.add((known, tuple(bytes(row[0]) for row in rows), log.membership().active()))
        log.close()
    origin.log.close()
    assert len(outcomes) == 1
    (_, void, active), *_ = outcomes
    assert set(void) == {right.batch_id, after_left.batch_id, after_right.batch_id}
    assert origin.m.member not in active
