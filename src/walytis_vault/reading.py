"""What commands decide on: the facts about some contents and ballots, read from the log itself.

Commands follow eventsourcing's dynamic consistency boundary: read the events that the decision depends on,
decide, append on condition that nothing was added to them meanwhile. Views are not asked: they may lag.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from eventsourcing.dcb.api import DCBAppendCondition, DCBQuery

from walytis_vault.adapters.walytis.recorder import LogRecorder
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import MEMBERSHIP, Contents, about, boundary


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a decision, the condition under which it stands, and what was published under each id."""

    state: Contents
    condition: DCBAppendCondition
    published: dict[bytes, ev.ContentPublished]


_MAPPER = ev.ClosedMapper()


def read_state(log: LogRecorder, contents: Iterable[bytes] = (), ballots: Iterable[bytes] = ()) -> Reading:
    """Read what decides about these contents and ballots: what the contents revise, and their ballots, included.

    Hiding and forgetting pass from a content to its revisions and never back, so the revisions are left out: a content
    that was revised thousands of times costs as little as another. `head` and `conflict` of its verdict say nothing.
    """
    return _read(log, set(contents), set(ballots), families=False)


def read_families(log: LogRecorder, contents: Iterable[bytes] = (), ballots: Iterable[bytes] = ()) -> Reading:
    """Read all that these contents and ballots can reach: also the contents of ballots, and all revisions."""
    return _read(log, set(contents), set(ballots), families=True)


def _read(log: LogRecorder, contents: set[bytes], ballots: set[bytes], *, families: bool) -> Reading:
    facts: dict[int, ev.Recorded] = {}
    after: int | None = None
    new_contents, new_ballots, items = set(contents), set(ballots), [MEMBERSHIP]
    while new_contents or new_ballots or items:
        response = log.read(DCBQuery(items=[*items, *about(new_contents, new_ballots, revisions=families)]))
        if items:
            # What comes while the rest is read fails the condition, and is looked at then.
            items, after = [], response.head
        new_contents, new_ballots = set(), set()
        for found in response:
            fact = _MAPPER.to_domain_event(found.event)
            assert isinstance(fact, ev.Recorded)
            facts[found.position] = fact
            _widen(fact.event, new_contents, new_ballots, families=families)
        new_contents -= contents
        new_ballots -= ballots
        contents |= new_contents
        ballots |= new_ballots
    state = Contents(log.history)
    published: dict[bytes, ev.ContentPublished] = {}
    for position in sorted(facts):
        fact = facts[position]
        state.apply(fact)
        event = fact.event
        if isinstance(event, ev.ContentPublished) and state.publications[event.content_id].order == fact.origin.order:
            published[event.content_id] = event
    return Reading(
        state=state,
        condition=DCBAppendCondition(fail_if_events_match=boundary(contents, ballots), after=after),
        published=published,
    )


def _widen(event: ev.Event, contents: set[bytes], ballots: set[bytes], *, families: bool) -> None:
    """Add what else must be read because of an event."""
    if isinstance(event, ev.ContentPublished):
        if event.revises is not None:
            contents.add(event.revises)
        if families:
            contents.add(event.content_id)
    elif isinstance(event, ev.ForgettingProposed):
        ballots.add(event.ballot_id)
        if families:
            contents.update(event.contents)
