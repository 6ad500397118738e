"""Forgetting, decided by ballot: the order-free fold of proposals and answers, and the rules for commands.

A ballot is settled by a set of facts, never by the order in which they arrived: every node that has the same
events comes to the same state. It refuses to look at clocks. Rules: design.md 4, docs/adr/0005-projections.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Final, Literal, Protocol

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import ConflictError, PermissionRefusedError, UnknownIdError

Order = tuple[int, bytes, int]
"""Causal depth, batch id, index: the order that is the same on every node (`Origin.order`)."""
BallotState = Literal["open", "carried", "refused", "withdrawn"]


class History(Protocol):
    """What is known about causes. The log knows exactly; without it depth is an approximation."""

    def saw(self, later: Order, earlier: Order) -> bool:
        """Whether the author of `later` had seen `earlier` when signing. Must be the same on every node."""
        ...

    def members_at(self, order: Order) -> frozenset[str] | None:
        """The members in the causal past of an event, None when this history cannot tell."""
        ...

    def knew(self, order: Order, content_id: bytes) -> bool | None:
        """Whether a content was published in the causal past of an event, None when this history cannot tell."""
        ...


class DepthHistory:
    """Causality approximated by depth: a cause always has a smaller depth; the reverse is assumed."""

    def saw(self, later: Order, earlier: Order) -> bool:
        """See `History.saw`."""
        return later[0] > earlier[0] or (later[1] == earlier[1] and later[2] > earlier[2])

    def members_at(self, order: Order) -> frozenset[str] | None:  # noqa: ARG002 - the port's name
        """Never known from depth alone."""
        return None

    def knew(self, order: Order, content_id: bytes) -> bool | None:  # noqa: ARG002 - the port's names
        """Never known from depth alone."""
        return None


BY_DEPTH: Final[History] = DepthHistory()


class Proposal(msgspec.Struct, frozen=True, array_like=True):
    """What was asked under a ballot id, without the sealed reason."""

    order: Order
    """Of the first time that it was asked."""
    proposer: str
    device: str
    time_ms: int
    contents: tuple[bytes, ...]
    electorate: tuple[str, ...]
    known: tuple[bytes, ...]
    """Those of the contents that were published in the causal past, sorted: it speaks of no others."""

    def question(self) -> tuple[str, tuple[bytes, ...], tuple[str, ...]]:
        """What a ballot id commits to (`claims.ballot_id_of`)."""
        return self.proposer, self.contents, self.electorate


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """A device says that it has erased."""

    order: Order
    member: str


class BallotFacts(msgspec.Struct, array_like=True):
    """Everything said under one ballot id: a grow-only set, reduced to what can matter."""

    proposals: list[Proposal] = []
    """Sorted by order. The id commits to the question, so the log lets in one; the fold copes with more."""
    consents: dict[str, Order] = {}
    refusals: dict[str, Order] = {}
    """Each member's first."""
    withdrawals: dict[str, Order] = {}
    receipts: dict[str, Receipt] = {}

    def add(self, event: ev.Event, origin: ev.Origin, history: History = BY_DEPTH) -> bool:
        """Add one event of this ballot; False when it changes nothing. Any order, any number of times."""
        order, member = origin.order, origin.author
        if isinstance(event, ev.ForgettingProposed):
            return self._propose(event, origin, history)
        if isinstance(event, ev.ForgettingConsented):
            return _first(self.consents, member, order)
        if isinstance(event, ev.ForgettingRefused):
            return _first(self.refusals, member, order)
        if isinstance(event, ev.ForgettingWithdrawn):
            return _first(self.withdrawals, member, order)
        if isinstance(event, ev.ContentErased):
            first = self.receipts.get(origin.device)
            if first is not None and first.order <= order:
                return False
            self.receipts[origin.device] = Receipt(order, member)
            return True
        return False

    def _propose(self, event: ev.ForgettingProposed, origin: ev.Origin, history: History) -> bool:
        contents, electorate = tuple(dict.fromkeys(event.contents)), tuple(sorted(set(event.electorate)))
        members = history.members_at(origin.order)
        if origin.author not in electorate or (members is not None and not members <= set(electorate)):
            return False  # its author left somebody out whom it knew
        proposal = Proposal(
            order=origin.order,
            proposer=origin.author,
            device=origin.device,
            time_ms=origin.time_ms,
            contents=contents,
            electorate=electorate,
            known=tuple(sorted(c for c in contents if history.knew(origin.order, c) is not False)),
        )
        same = [p for p in self.proposals if p.question() == proposal.question()]
        known = {c for p in (proposal, *same) for c in p.known}
        first = min((proposal, *same), key=lambda p: p.order)
        made = msgspec.structs.replace(first, known=tuple(sorted(known)))
        if same == [made]:
            return False
        others = [p for p in self.proposals if p.question() != proposal.question()]
        self.proposals = sorted([*others, made], key=lambda p: p.order)
        return True


def _first(known: dict[str, Order], member: str, order: Order) -> bool:
    """Keep the smallest order of a member; whether it changed."""
    if member in known and known[member] <= order:
        return False
    known[member] = order
    return True


class Members(msgspec.Struct):
    """Who came and who went, as two grow-only sets: removal is for good (domain/membership.py)."""

    admitted: set[str] = msgspec.field(default_factory=set)
    removed: set[str] = msgspec.field(default_factory=set)

    def add(self, event: ev.Event) -> str | None:
        """Fold one membership event; return the member that it changed something for."""
        if isinstance(event, ev.MemberRemoved):
            known, member = self.removed, event.member
        elif isinstance(event, ev.VaultFounded):
            known, member = self.admitted, event.founder
        elif isinstance(event, ev.MemberAdmitted):
            known, member = self.admitted, event.member
        else:
            return None
        if member in known:
            return None
        known.add(member)
        return member

    def active(self) -> tuple[str, ...]:
        """The members now, sorted."""
        return tuple(sorted(self.admitted - self.removed))


class Ballot(msgspec.Struct, frozen=True, kw_only=True):
    """A settled ballot: what every node with these events sees."""

    ballot_id: bytes
    state: BallotState
    proposal: Proposal
    consents: tuple[str, ...]
    refusals: tuple[str, ...]
    waiting: tuple[str, ...]
    """Members that have still to answer."""
    receipts: tuple[str, ...]
    """Device DIDs that have erased, sorted."""
    carried: frozenset[bytes]
    """Contents that are to be erased (normally all of the proposal's, or none)."""
    contested: bool
    """Several proposals claim this ballot id: one of their authors misbehaved."""


def settle(ballot_id: bytes, facts: BallotFacts, removed: Set[str] = frozenset()) -> Ballot | None:
    """Decide a ballot from its facts.

    Carried when every member of the electorate, less those removed, has consented; the proposer consents by
    proposing. The id commits to the question, so a consent is one to these contents, whatever its author had seen.
    A consent counts whatever else its author said, so that no later fact undoes what was carried. Contents that the
    proposer could not know are not forgotten: nobody makes a ballot of fewer members than there were by going back.

    Returns:
        None while no valid proposal is known.
    """
    best: Ballot | None = None
    carried: set[bytes] = set()
    for proposal in facts.proposals:
        ballot = _settle_one(ballot_id, proposal, facts, removed)
        carried |= ballot.carried
        if best is None or (ballot.state == "carried" and best.state != "carried"):
            best = ballot
    if best is None:
        return None
    return msgspec.structs.replace(best, carried=frozenset(carried), contested=len(facts.proposals) > 1)


def _settle_one(ballot_id: bytes, proposal: Proposal, facts: BallotFacts, removed: Set[str]) -> Ballot:
    electorate = set(proposal.electorate)
    consents = {m for m in electorate if m == proposal.proposer or m in facts.consents}
    refusals = {m for m in electorate - consents if m in facts.refusals}
    gone = removed & electorate
    state: BallotState = "open"
    if consents | gone >= electorate:
        state = "carried"  # wins over all: a node may have erased already
    elif refusals:
        state = "refused"
    elif proposal.proposer in facts.withdrawals:
        state = "withdrawn"
    return Ballot(
        ballot_id=ballot_id,
        state=state,
        proposal=proposal,
        consents=tuple(sorted(consents)),
        refusals=tuple(sorted(refusals)),
        waiting=tuple(m for m in proposal.electorate if m not in consents | refusals | gone),
        receipts=tuple(sorted(facts.receipts)),
        carried=frozenset(proposal.known if state == "carried" else ()),
        contested=False,
    )


def ballot_of(event: ev.Event) -> bytes | None:
    """The ballot id that an event speaks about, if any."""
    if isinstance(
        event,
        ev.ForgettingProposed
        | ev.ForgettingConsented
        | ev.ForgettingRefused
        | ev.ForgettingWithdrawn
        | ev.ContentErased,
    ):
        return event.ballot_id
    return None


class Ballots:
    """The fold in memory: for commands, and the reference that the views are tested against."""

    def __init__(self, history: History = BY_DEPTH) -> None:
        self.history = history
        self.facts: dict[bytes, BallotFacts] = {}
        self.known = Members()

    def apply(self, recorded: ev.Recorded) -> None:
        """Add one event; those that do not matter here are ignored."""
        event, origin = recorded.event, recorded.origin
        self.known.add(event)
        ballot_id = ballot_of(event)
        if ballot_id is not None:
            self.facts.setdefault(ballot_id, BallotFacts()).add(event, origin, self.history)

    def ballot(self, ballot_id: bytes) -> Ballot | None:
        """The ballot as it stands, None when there is no valid proposal."""
        facts = self.facts.get(ballot_id)
        return None if facts is None else settle(ballot_id, facts, self.known.removed)

    def all(self) -> list[Ballot]:
        """Every ballot, in the order of the proposals."""
        found = [b for i in self.facts if (b := self.ballot(i)) is not None]
        return sorted(found, key=lambda b: (b.proposal.order, b.ballot_id))

    def members(self) -> tuple[str, ...]:
        """The members now, sorted."""
        return self.known.active()


def decide_answer(ballots: Ballots, ballot_id: bytes, *, by: str, consents: bool) -> bool:
    """Whether an answer is to be recorded; False when the same answer stands already (a retry).

    Raises:
        UnknownIdError: no such ballot.
        PermissionRefusedError: `by` was not asked.
        ConflictError: the ballot is over, or `by` has answered otherwise.
    """
    ballot = _known(ballots, ballot_id)
    if by not in ballot.proposal.electorate:
        raise PermissionRefusedError("only members that the ballot asks may answer it")
    if by in (ballot.consents if consents else ballot.refusals):
        return False
    if by == ballot.proposal.proposer:
        raise ConflictError("the proposer consents by proposing: withdraw the ballot instead of refusing it")
    if by in ballot.refusals or by in ballot.consents:
        raise ConflictError("this member has answered already, and the first answer counts: open a new ballot")
    if ballot.state != "open":
        raise ConflictError(f"the ballot is {ballot.state}: nothing is left to answer")
    return True


def decide_withdraw(ballots: Ballots, ballot_id: bytes, *, by: str) -> bool:
    """Whether a withdrawal is to be recorded; False when it was withdrawn already.

    Raises:
        UnknownIdError: no such ballot.
        PermissionRefusedError: `by` is not the proposer.
        ConflictError: the ballot carried or was refused.
    """
    ballot = _known(ballots, ballot_id)
    if by != ballot.proposal.proposer:
        raise PermissionRefusedError("only the proposer may withdraw a ballot")
    if ballot.state == "withdrawn":
        return False
    if ballot.state != "open":
        raise ConflictError(f"the ballot is {ballot.state} and cannot be withdrawn")
    return True


def open_ballot_for(ballots: Ballots, contents: Iterable[bytes]) -> Ballot | None:
    """An open ballot that names all of these contents: a new proposal would only repeat it."""
    wanted = set(contents)
    return next((b for b in ballots.all() if b.state == "open" and wanted <= set(b.proposal.contents)), None)


def _known(ballots: Ballots, ballot_id: bytes) -> Ballot:
    ballot = ballots.ballot(ballot_id)
    if ballot is None:
        raise UnknownIdError(f"no ballot {ballot_id.hex()} is known here: `ballots` lists them")
    return ballot
