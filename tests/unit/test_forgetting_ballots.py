"""The rules of ballots, one by one, and that no order of arrival changes their outcome."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.view_world import MEMBERS, admitted, at, ballot, content, founded, proposed, random_history
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import ConflictError, PermissionRefusedError, UnknownIdError
from walytis_vault.domain.forgetting import (
    BallotFacts,
    Ballots,
    DepthHistory,
    Order,
    decide_answer,
    decide_withdraw,
    open_ballot_for,
    settle,
)

A, B, C, D = MEMBERS
BALLOT = ballot(1)
CONSENT = ev.ForgettingConsented(ballot_id=BALLOT)
REFUSE = ev.ForgettingRefused(ballot_id=BALLOT)
WITHDRAW = ev.ForgettingWithdrawn(ballot_id=BALLOT)


def fold(*events: ev.Recorded, history: DepthHistory | None = None) -> Ballots:
    ballots = Ballots(history or DepthHistory())
    for event in events:
        ballots.apply(event)
    return ballots


def state(*events: ev.Recorded) -> str:
    found = fold(*events).ballot(BALLOT)
    return "none" if found is None else found.state


def test_the_vault_of_one_forgets_at_once() -> None:
    """A ballot that asks nobody but its proposer carries with the proposal."""
    assert state(at(proposed(1, [1], [A]), A, 5)) == "carried"


def test_it_carries_when_all_have_consented() -> None:
    """The proposer consents by proposing; the last of the others carries the ballot."""
    proposal = at(proposed(1, [1], [A, B, C]), A, 5)
    assert state(proposal) == "open"
    assert state(proposal, at(CONSENT, B, 6)) == "open"
    assert state(proposal, at(CONSENT, B, 6), at(CONSENT, C, 6)) == "carried"


def test_a_refusal_ends_it() -> None:
    """One member of the electorate that says no is enough."""
    assert state(at(proposed(1, [1], [A, B, C]), A, 5), at(REFUSE, B, 6), at(CONSENT, C, 6)) == "refused"


def test_a_consent_counts_whatever_else_its_author_says() -> None:
    """What carried stays carried, also when a refusal turns up that was signed before; honest nodes answer once."""
    proposal = at(proposed(1, [1], [A, B]), A, 5)
    consent, refusal = at(CONSENT, B, 6), at(REFUSE, B, 7, device="did:b/2")
    assert state(proposal, consent, refusal) == state(proposal, refusal, consent) == "carried"
    assert state(proposal, at(CONSENT, B, 7), at(REFUSE, B, 6)) == "carried"


def test_withdrawing_ends_an_open_ballot_but_not_one_that_carried() -> None:
    """What carried may have been erased somewhere, and that cannot be taken back."""
    proposal = at(proposed(1, [1], [A, B]), A, 5)
    assert state(proposal, at(WITHDRAW, A, 6)) == "withdrawn"
    assert state(proposal, at(WITHDRAW, A, 6), at(CONSENT, B, 6)) == "carried"


def test_only_the_proposer_withdraws() -> None:
    """A withdrawal by somebody else does nothing."""
    assert state(at(proposed(1, [1], [A, B]), A, 5), at(WITHDRAW, B, 6)) == "open"


def test_strangers_are_not_heard() -> None:
    """Answers of members outside the electorate do not count."""
    proposal = at(proposed(1, [1], [A, B]), A, 5)
    assert state(proposal, at(REFUSE, C, 6), at(CONSENT, D, 6)) == "open"


def test_a_proposer_outside_the_electorate_proposes_nothing() -> None:
    """A proposal whose author leaves itself out is ignored."""
    assert state(at(proposed(1, [1], [B]), A, 5), at(CONSENT, B, 6)) == "none"


def test_answers_before_their_proposal_are_kept() -> None:
    """The order of arrival does not matter."""
    assert state(at(CONSENT, B, 6), at(proposed(1, [1], [A, B]), A, 5)) == "carried"


def test_answers_without_a_proposal_are_no_ballot() -> None:
    """Consents alone make nothing."""
    assert state(at(CONSENT, B, 6)) == "none"


def test_removal_settles_ballots_that_waited_for_the_member() -> None:
    """A removed member is not waited for, whether it had answered or not."""
    proposal = at(proposed(1, [1], [A, B, C]), A, 5)
    removal = at(ev.MemberRemoved(member=C, accepted=()), A, 7)
    assert state(proposal, at(CONSENT, B, 6), removal) == "carried"
    assert state(proposal, removal) == "open"
    assert state(proposal, at(CONSENT, B, 6), at(REFUSE, C, 6)) == "refused"
    assert state(proposal, at(CONSENT, B, 6), at(REFUSE, C, 6), removal) == "carried"


def test_two_questions_under_one_id_are_contested_and_the_smaller_order_shows() -> None:
    """The log lets no such thing in, since ids commit to the question; the fold does not depend on that."""
    first, second = at(proposed(1, [1], [A, B]), A, 5), at(proposed(1, [2], [B, C]), B, 6)
    found = fold(second, first).ballot(BALLOT)
    assert found is not None
    assert found.contested
    assert found.proposal.order == first.origin.order


class Exact(DepthHistory):
    """Knows the members at a proposal, and which contents its author knew."""

    def __init__(self, members: frozenset[str] | None = None, known: frozenset[bytes] | None = None) -> None:
        self.members = members
        self.known = known

    def members_at(self, order: Order) -> frozenset[str] | None:
        return self.members

    def knew(self, order: Order, content_id: bytes) -> bool | None:
        return None if self.known is None else content_id in self.known


def test_a_proposal_speaks_of_nothing_that_its_author_could_not_know() -> None:
    """Whoever goes back to when there were fewer members decides nothing about what was published since."""
    both = at(proposed(1, [1, 2], [A]), A, 5)
    found = fold(both, history=Exact(known=frozenset({content(1)}))).ballot(BALLOT)
    assert found is not None
    assert found.carried == {content(1)}
    nothing = fold(both, history=Exact(known=frozenset())).ballot(BALLOT)
    assert nothing is not None
    assert nothing.carried == frozenset()


def test_a_question_that_is_asked_again_is_one_question() -> None:
    """The first time shows, and what was known at any of them counts, in both orders."""
    late, early = at(proposed(1, [1], [A]), A, 6), at(proposed(1, [1], [A]), A, 3, device="did:a/2")
    for told in ((late, early), (early, late)):
        facts = BallotFacts()
        for recorded in told:
            known = frozenset({content(1)}) if recorded is late else frozenset()
            facts.add(recorded.event, recorded.origin, Exact(known=known))
        found = settle(BALLOT, facts)
        assert found is not None
        assert (found.proposal.order, found.contested) == (early.origin.order, False)
        assert found.carried == {content(1)}


def test_an_electorate_that_leaves_out_a_known_member_is_no_electorate() -> None:
    """A member cannot carry a ballot alone by not asking the others."""
    alone = at(proposed(1, [1], [A]), A, 5)
    history = Exact(members=frozenset({A, B}))
    assert fold(alone, history=history).ballot(BALLOT) is None


def test_receipts_name_devices_once() -> None:
    """Each device's receipt counts once, sorted."""
    erased = ev.ContentErased(contents=(bytes(16),), ballot_id=BALLOT)
    found = fold(
        at(proposed(1, [1], [A]), A, 5),
        at(erased, A, 7, device="did:a/2"),
        at(erased, A, 6),
        at(erased, A, 8),
    ).ballot(BALLOT)
    assert found is not None
    assert found.receipts == ("did:a/1", "did:a/2")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shuffle=st.integers(0, 2**32))
def test_every_order_of_arrival_gives_the_same_ballots(seed: int, shuffle: int) -> None:
    """Whatever arrives when, and how often, the ballots are the same."""
    history = random_history(seed, 40)
    other = history + history[::3]
    random.Random(shuffle).shuffle(other)
    assert fold(*history).all() == fold(*other).all()
    assert fold(*history).members() == fold(*other).members()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_carried_stays_carried_when_members_go(seed: int) -> None:
    """Removing members never takes a carried ballot back."""
    ballots = fold(*(e for e in random_history(seed, 40) if not isinstance(e.event, ev.MemberRemoved)))
    carried = {b.ballot_id for b in ballots.all() if b.state == "carried"}
    for member in MEMBERS:
        ballots.apply(at(ev.MemberRemoved(member=member, accepted=()), A, 20))
        now = {b.ballot_id for b in ballots.all() if b.state == "carried"}
        assert carried <= now
        carried = now


def test_answers_are_decided() -> None:
    """Members of the electorate may answer an open ballot once; repeating the same answer is no error."""
    ballots = fold(at(founded(), A, 1), at(admitted(B), A, 2), at(proposed(1, [1], [A, B, C]), A, 5))
    assert decide_answer(ballots, BALLOT, by=B, consents=True)
    assert not decide_answer(ballots, BALLOT, by=A, consents=True)
    with pytest.raises(ConflictError, match="withdraw"):
        decide_answer(ballots, BALLOT, by=A, consents=False)
    with pytest.raises(PermissionRefusedError):
        decide_answer(ballots, BALLOT, by=D, consents=True)
    with pytest.raises(UnknownIdError, match="ballots"):
        decide_answer(ballots, ballot(9), by=B, consents=True)
    ballots.apply(at(CONSENT, B, 6))
    assert not decide_answer(ballots, BALLOT, by=B, consents=True)
    with pytest.raises(ConflictError, match="first answer"):
        decide_answer(ballots, BALLOT, by=B, consents=False)
    ballots.apply(at(REFUSE, C, 6))
    with pytest.raises(ConflictError):
        decide_answer(ballots, BALLOT, by=B, consents=False)


def test_withdrawals_are_decided() -> None:
    """Only the proposer may withdraw, and only while the ballot is open."""
    ballots = fold(at(proposed(1, [1], [A, B]), A, 5))
    with pytest.raises(PermissionRefusedError):
        decide_withdraw(ballots, BALLOT, by=B)
    assert decide_withdraw(ballots, BALLOT, by=A)
    ballots.apply(at(WITHDRAW, A, 6))
    assert not decide_withdraw(ballots, BALLOT, by=A)
    ballots.apply(at(CONSENT, B, 6))
    with pytest.raises(ConflictError, match="carried"):
        decide_withdraw(ballots, BALLOT, by=A)


def test_an_open_ballot_for_the_same_contents_is_found() -> None:
    """A repeated request leads to the ballot that is open already, not to a second one."""
    ballots = fold(at(proposed(1, [1, 2], [A, B]), A, 5))
    proposal = proposed(1, [1, 2], [A, B])
    assert isinstance(proposal, ev.ForgettingProposed)
    found = open_ballot_for(ballots, proposal.contents[:1])
    assert found is not None
    assert found.ballot_id == BALLOT
    assert open_ballot_for(ballots, [*proposal.contents, bytes(16)]) is None
