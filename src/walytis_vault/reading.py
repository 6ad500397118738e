"""What commands decide on: the facts about some contents and ballots, read from the log itself.

Commands follow eventsourcing's dynamic consistency boundary: read the events that the decision depends on,
decide, append on condition that nothing was added to them meanwhile. Views are not asked: they may lag.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from eventsourcing.dcb.api import DCBAppendCondition

from walytis_vault.adapters.walytis.recorder import LogRecorder
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Contents, boundary


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a decision, what it was read from, and what was published under each id."""

    state: Contents
    condition: DCBAppendCondition
    published: dict[bytes, ev.ContentPublished]
    reasons: dict[bytes, bytes]
    """Ballot id -> sealed reason."""


_MAPPER = ev.ClosedMapper()


def read_state(log: LogRecorder, contents: Iterable[bytes] = (), ballots: Iterable[bytes] = ()) -> Reading:
    """Read everything that concerns these contents and ballots: families of revisions and their ballots included."""
    wanted_contents, wanted_ballots = set(contents), set(ballots)
    while True:
        query = boundary(sorted(wanted_contents), sorted(wanted_ballots))
        response = log.read(query)
        after = response.head
        recorded = [_MAPPER.to_domain_event(e.event) for e in response]
        more_contents, more_ballots = set(wanted_contents), set(wanted_ballots)
        for fact in recorded:
            _widen(fact, more_contents, more_ballots)
        if (more_contents, more_ballots) == (wanted_contents, wanted_ballots):
            break
        wanted_contents, wanted_ballots = more_contents, more_ballots
    state = Contents(log.history)
    published: dict[bytes, ev.ContentPublished] = {}
    reasons: dict[bytes, bytes] = {}
    for fact in recorded:
        assert isinstance(fact, ev.Recorded)
        state.apply(fact)
        event = fact.event
        if isinstance(event, ev.ContentPublished) and state.publications[event.content_id].order == fact.origin.order:
            published[event.content_id] = event
        if isinstance(event, ev.ForgettingProposed):
            reasons.setdefault(event.ballot_id, event.reason)
    return Reading(
        state=state,
        condition=DCBAppendCondition(fail_if_events_match=query, after=after),
        published=published,
        reasons=reasons,
    )


def _widen(fact: object, contents: set[bytes], ballots: set[bytes]) -> None:
    event = fact.event if isinstance(fact, ev.Recorded) else None
    if isinstance(event, ev.ContentPublished):
        contents.add(event.content_id)
        if event.revises is not None:
            contents.add(event.revises)
    elif isinstance(event, ev.ForgettingProposed):
        ballots.add(event.ballot_id)
        contents.update(event.contents)
