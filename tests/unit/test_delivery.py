"""Sharing segments out between holders: every one comes once, from whoever is left."""

from __future__ import annotations

import threading
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from walytis_vault.peers.delivery import Delivery


def test_holders_claim_each_segment_once() -> None:
    """Two holders that work together are given different segments, and then none."""
    delivery = Delivery(range(4), slow_s=60)
    for who in "ab":
        delivery.begin(who)
    claims = [delivery.claim(who, wait=False) for who in "abab"]
    assert claims == [0, 1, 2, 3]
    assert delivery.claim("a", wait=False) is None
    for number in range(4):
        delivery.brought(number)
    assert delivery.claim("b", wait=True) is None
    assert delivery.wait()


def test_what_a_dead_holder_claimed_goes_to_the_others() -> None:
    """A holder that gives up returns its claims, and another that waits for work gets them."""
    delivery = Delivery(range(2), slow_s=60)
    for who in "ab":
        delivery.begin(who)
    assert [delivery.claim("a", wait=False), delivery.claim("b", wait=False)] == [0, 1]
    delivery.brought(1)
    got: list[int | None] = []
    waiting = threading.Thread(target=lambda: got.append(delivery.claim("b", wait=True)))
    waiting.start()
    delivery.gave_up("a")
    waiting.join(10)
    assert got == [0]
    delivery.brought(0)
    assert delivery.wait()


def test_a_slow_holder_is_overtaken() -> None:
    """An idle holder brings too what another claimed too long ago; whoever is first counts."""
    delivery = Delivery(range(1), slow_s=0)
    for who in "ab":
        delivery.begin(who)
    assert delivery.claim("a", wait=False) == 0
    assert delivery.claim("b", wait=True) == 0
    assert delivery.claim("b", wait=False) is None
    delivery.brought(0)
    assert delivery.claim("a", wait=True) is None
    assert delivery.wait()


def test_nobody_left_ends_the_wait() -> None:
    """When all holders gave up, whoever waits is told that it is not complete."""
    delivery = Delivery(range(3))
    delivery.begin("a")
    assert delivery.claim("a", wait=False) == 0
    delivery.gave_up("a")
    assert not delivery.wait()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["claim", "bring", "give up"])), max_size=60))
def test_no_segment_is_lost_or_given_twice(steps: list[tuple[str, str]]) -> None:
    """Whatever holders do, a segment is open, claimed by one of them or brought; the last one can finish."""
    delivery, mine = Delivery(range(5), slow_s=60), {who: list[int]() for who in "abcd"}
    brought: Counter[int] = Counter()
    for who in "abcd":
        delivery.begin(who)
    for who, step in steps:
        if step == "claim" and (number := delivery.claim(who, wait=False)) is not None:
            assert not brought[number]
            assert all(number not in held for held in mine.values())
            mine[who].append(number)
        elif step == "bring" and mine[who]:
            number = mine[who].pop(0)
            brought[number] += 1
            delivery.brought(number)
        elif step == "give up":
            delivery.gave_up(who)
            mine[who] = []
    for who in "abc":
        delivery.gave_up(who)
    while (number := delivery.claim("d", wait=False)) is not None:
        brought[number] += 1
        delivery.brought(number)
    assert delivery.wait()
    assert brought == Counter(range(5))
