"""Telling whoever has just begun to listen what our last blocks are.

Kubo hands a message only to peers of whom it knows at that moment that they listen to the topic. So a block made while
two nodes meet is told to nobody, as what was made while they were apart, and upstream tells its leaves again only after
20 to 40 quiet seconds. Here we look who listens, and tell the leaves as soon as somebody new does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from walytis_vault.adapters.walytis import upstream

LOOK_S: Final = 0.5
"""Seconds between looks, each of which costs about a millisecond in Kubo; as often is told at most."""


class Greeter:
    """Looks who listens to a topic.

    Args:
        topics: those to look at.
        listeners: the ids of the peers that listen to one now. May raise.
        tell: tells our leaves to all who listen to one. May raise.
    """

    def __init__(
        self,
        topics: Callable[[], Iterable[str]],
        listeners: Callable[[str], Iterable[str]],
        tell: Callable[[str], None],
    ) -> None:
        self._topics = topics
        self._listeners = listeners
        self._tell = tell
        self._known: dict[str, frozenset[str]] = {}

    def start(self) -> None:
        """Look again and again until the process ends."""
        threading.Thread(target=self._run, name="greet-peers", daemon=True).start()

    def look(self) -> None:
        """Look once. Never raises: what cannot be told now is told at the next look."""
        for topic in self._topics():
            try:
                now = frozenset(self._listeners(topic))
                if now - self._known.get(topic, frozenset()):
                    self._tell(topic)
                self._known[topic] = now
            except Exception as e:
                upstream.logger.debug("leaves not told: %s", e)

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_S):
            self.look()
