"""How long a key that sent too much waits until it may connect again."""

from __future__ import annotations

from walytis_vault.bus.barred import FIRST_S, FORGIVEN_S, MOST_S, Barred
from walytis_vault.bus.protocol import BusLimits

KEY, OTHER = "a" * 40, "b" * 40


def test_a_key_waits_and_no_other_does() -> None:
    """Barred until its time is over; nobody else is."""
    barred = Barred()
    assert barred.add(KEY, 100.0) == FIRST_S
    assert barred.holds(KEY, 100.0 + FIRST_S / 2)
    assert not barred.holds(KEY, 100.0 + FIRST_S)
    assert not barred.holds(OTHER, 100.0)


def test_each_further_time_is_twice_as_long_up_to_a_bound() -> None:
    """Whoever goes on as before waits longer, never for ever."""
    barred, now, lengths = Barred(), 0.0, []
    for _ in range(8):
        lengths.append(barred.add(KEY, now))
        now += lengths[-1] + 0.1
    assert lengths == [1.0, 2.0, 4.0, 8.0, MOST_S, MOST_S, MOST_S, MOST_S]


def test_several_connections_cut_at_once_are_one_time() -> None:
    """A program with many connections that are all cut together waits as if there had been one."""
    barred = Barred()
    barred.add(KEY, 0.0)
    assert [barred.add(KEY, 0.25) for _ in range(10)] == [FIRST_S - 0.25] * 10
    assert barred.add(KEY, FIRST_S + 0.1) == 2 * FIRST_S


def test_good_behaviour_is_forgiven_and_forgotten() -> None:
    """After a while the next time is the first again, and nothing is kept of the key."""
    barred = Barred()
    barred.add(KEY, 0.0)
    barred.add(KEY, FIRST_S)
    barred.refresh(FORGIVEN_S)
    assert barred.add(KEY, 4.0 + FORGIVEN_S) == FIRST_S
    barred.refresh(1000.0)
    assert not barred.holds(KEY, 1000.0)


def test_connections_of_a_key_have_a_pace() -> None:
    """Ten seconds' worth at once, then as many a second for ever; with more it is barred, and others are not."""
    barred = Barred(BusLimits(client_connects=10))
    assert all(barred.may_come(KEY, 0.0) for _ in range(100))
    assert all(barred.may_come(KEY, 0.101 * number) for number in range(1, 10))
    assert not barred.may_come(KEY, 0.91)
    assert barred.may_come("other", 0.91)
    assert not barred.may_come(KEY, 0.91 + FIRST_S / 2)
    assert barred.may_come(KEY, 0.91 + FIRST_S)
    barred.refresh(1000.0)
    assert all(barred.may_come(KEY, 1000.0) for _ in range(100))
