"""Which removals stand, asked of the function itself; the stories are in test_membership_rules.py."""

from __future__ import annotations

import itertools

from walytis_vault.domain.events import LastBatch, Origin
from walytis_vault.domain.removals import Removal, settle_removals


def origin(device: str, number: int) -> Origin:
    """A batch of a device."""
    name = f"{device} {number}".encode().ljust(32)
    return Origin(batch_id=name, index=0, depth=number, author=device, device=device, number=number, time_ms=0)


def leads(batch_id: bytes, last: LastBatch) -> bool:
    """Nobody forks here."""
    device, number = batch_id.decode().split()
    return device == last.device and int(number) <= last.number


def removal(rank: int, by: Origin, *stands_on: Origin, **cuts: int) -> Removal:
    """By the batch `by`; device -> the number of its last batch that counts, 0 for none."""
    return Removal(
        rank=(rank, 0, (0, b"", 0)),
        member=None,
        cuts={
            d: None if not n else LastBatch(device=d, number=n, batch_id=origin(d, n).batch_id) for d, n in cuts.items()
        },
        stands_on=(by, *stands_on),
    )


def test_a_removal_that_cuts_off_what_it_stands_on_strikes_others_all_the_same() -> None:
    """What it cuts off of its own counts neither for nor against it, so the one that it strikes does not stand."""
    senior = removal(0, origin("F", 5), X=0)
    junior = removal(2, origin("N", 3), origin("F", 2), F=1)
    for order in itertools.permutations((senior, junior)):
        standing, spared = settle_removals(order, leads)
        assert standing == [junior]
        assert spared == frozenset()


def test_removals_that_strike_each_other_settle_by_rank() -> None:
    """The more senior one stands, and nothing is spared."""
    one, two = removal(0, origin("A", 2), B=1), removal(1, origin("B", 2), A=1)
    assert settle_removals((two, one), leads) == ([one], frozenset())


def test_who_settles_by_rank_settles_before_anybody_more_senior_is_looked_at() -> None:
    """The most senior one is struck by the winner of a pair, and by nobody's choice spared."""
    senior = removal(0, origin("A", 2), X=0)
    winner = removal(1, origin("B", 2), A=1, C=1)
    loser = removal(2, origin("C", 2), B=1)
    for order in itertools.permutations((senior, winner, loser)):
        assert settle_removals(order, leads) == ([winner], frozenset())
