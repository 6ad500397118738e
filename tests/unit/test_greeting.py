"""Who is told our last blocks, and when."""

from __future__ import annotations

from walytis_vault.adapters.walytis.greeting import Greeter


class Topic:
    """Who listens, and what they were told."""

    def __init__(self) -> None:
        self.listeners: list[str] = []
        self.told: list[list[str]] = []
        self.broken = False

    def greeter(self) -> Greeter:
        return Greeter(lambda: ["topic"], lambda _: self.listeners, self.tell)

    def tell(self, topic: str) -> None:
        assert topic == "topic"
        if self.broken:
            raise RuntimeError("no node")
        self.told.append(list(self.listeners))


def test_each_who_comes_is_told_once() -> None:
    """Nobody while nobody is there; all again when one more comes or one comes back; nothing when one leaves."""
    topic = Topic()
    greeter = topic.greeter()
    for listeners in ([], ["a"], ["a"], ["a", "b"], ["b"], ["b"], ["a", "b"], []):
        topic.listeners = listeners
        greeter.look()
    assert topic.told == [["a"], ["a", "b"], ["a", "b"]]


def test_what_could_not_be_told_is_told_at_the_next_look() -> None:
    """An error of the node below is no end."""
    topic = Topic()
    greeter = topic.greeter()
    topic.listeners, topic.broken = ["a"], True
    greeter.look()
    topic.broken = False
    greeter.look()
    greeter.look()
    assert topic.told == [["a"]]
