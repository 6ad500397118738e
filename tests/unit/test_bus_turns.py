"""Whose turn it is: so many under way of each kind, the rest in line, in order."""

from __future__ import annotations

from walytis_vault.bus.turns import Kind, Turns


class Call:
    def __init__(self, name: bytes, lane: Kind = "call") -> None:
        self.id = name
        self.lane: Kind = lane


def test_so_many_are_under_way_and_the_others_follow_in_order() -> None:
    """Whoever leaves hands its turn to the first in line."""
    turns = Turns({"call": 2})
    calls = [Call(bytes([n])) for n in range(5)]
    assert [turns.may(call) for call in calls] == [True, True, False, False, False]
    assert [turns.in_line(call) for call in calls] == [False, False, True, True, True]
    assert turns.leave(calls[0]) is calls[2]
    assert turns.may(calls[2])
    assert not turns.may(calls[3])
    assert turns.leave(calls[3]) is None, "it had no turn to hand on"
    assert turns.leave(calls[1]) is calls[4]


def test_kinds_do_not_wait_for_each_other_and_some_wait_for_none() -> None:
    """A download waits for downloads only, a subscription never."""
    turns = Turns({"call": 1, "download": 1})
    assert turns.may(Call(b"a"))
    assert turns.may(Call(b"b", "download"))
    assert not turns.may(Call(b"c", "download"))
    assert all(turns.may(Call(bytes([n]), "")) for n in range(100))


def test_a_new_name_keeps_turn_and_place() -> None:
    """What goes on under another id neither loses its turn nor takes two."""
    turns = Turns({"call": 1})
    first, second = Call(b"1"), Call(b"2")
    assert turns.may(first)
    assert not turns.may(second)
    turns.rename(first, b"3")
    first.id = b"3"
    turns.rename(second, b"4")
    second.id = b"4"
    assert turns.may(first)
    assert turns.in_line(second)
    assert turns.leave(first) is second
    assert turns.may(second)
