"""Which of several removals stand when they cut each other off: a function of the set alone, in no order.

A removal strikes another when it voids the batch that the other stands in, or one that let the other's author in.
What is struck by a removal that stands does not stand, whatever the ranks: who was removed cannot remove others
with backdated batches. Only where removals strike each other, directly or in a circle, does seniority decide,
which nobody can grind for afterwards. Reasons: ADR 0006.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from walytis_vault.domain.events import LastBatch, Origin

Leads = Callable[[bytes, LastBatch], bool]
"""Whether a batch is the named last one or stands before it in the same device's own chain. Numbers do not tell: a
device can sign a second batch under a number that it has used. The same on every node that has the named one."""


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """One removal that its author was entitled to."""

    rank: tuple[int, int, tuple[int, bytes, int]]
    """Seniority of the author, seniority of its device, order: unique; the smallest is the most senior."""
    member: str | None
    """The member that goes; None when only a device does."""
    cuts: Mapping[str, LastBatch | None]
    """Device -> its last batch that counts; None when none does."""
    stands_on: tuple[Origin, ...]
    """The removal's own batch first, then those that let its author in."""


def settle_removals(removals: Sequence[Removal], leads: Leads) -> tuple[list[Removal], frozenset[bytes]]:
    """Decide.

    Returns:
        The removals that stand, most senior first; and ids of batches that hold one of them and count although
        another one that stands cuts them off, which happens only in circles of three and more.
    """
    ranked = sorted(removals, key=lambda r: r.rank)
    strikes = _strikes(ranked, leads)
    struck_by: list[set[int]] = [set() for _ in ranked]
    for striker, struck in enumerate(strikes):
        for i in struck:
            struck_by[i].add(striker)
    undecided = set(range(len(ranked)))
    left = [set(s) for s in struck_by]
    standing: set[int] = set()
    ready = [i for i in undecided if not left[i]]
    while undecided:
        # When all that are left strike each other in circles, the most senior one breaks them.
        stands = ready.pop() if ready else min(undecided)
        if stands not in undecided:
            continue
        undecided.discard(stands)
        standing.add(stands)
        for loser in strikes[stands] & undecided:
            undecided.discard(loser)
            for freed in strikes[loser]:
                left[freed].discard(loser)
                if freed in undecided and not left[freed]:
                    ready.append(freed)
    spared = frozenset(ranked[i].stands_on[0].batch_id for i in standing if struck_by[i] & standing)
    return [ranked[i] for i in sorted(standing)], spared


def _strikes(ranked: Sequence[Removal], leads: Leads) -> list[set[int]]:
    """For each removal those that it strikes, less seniors who strike back."""
    grounds: dict[str, list[tuple[int, Origin]]] = {}
    for i, removal in enumerate(ranked):
        for origin in removal.stands_on:
            grounds.setdefault(origin.device, []).append((i, origin))
    all_strikes = [
        {
            i
            for device, cut in removal.cuts.items()
            for i, at in grounds.get(device, ())
            if is_beyond(cut, at.batch_id, leads)
        }
        for removal in ranked
    ]
    return [
        {i for i in struck if i != striker and not (i < striker and striker in all_strikes[i])}
        for striker, struck in enumerate(all_strikes)
    ]


def is_beyond(cut: LastBatch | None, batch_id: bytes, leads: Leads) -> bool:
    """Whether a batch of a device lies beyond the last one that counts: every one does when that is None."""
    return cut is None or not leads(batch_id, cut)
