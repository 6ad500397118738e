"""Works on many small tasks at once: whoever is idle takes all that waits, from each owner in turn.

Where a task costs little and the wait for disk and chain costs much, one worker with a hundred tasks does them
in the time of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from walytis_vault.bus.workers import Workers

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Batcher(Workers[T]):
    """See `Workers`.

    Args:
        name: for thread names and logs.
        threads: the bound; more than one, so that one batch is prepared while another is made durable.
        most: tasks in one batch (a count).
        work: does a batch, on a worker; tells each task's owner itself and raises nothing.
    """

    def __init__(self, name: str, threads: int, most: int, work: Callable[[list[T]], None]) -> None:
        super().__init__(name, threads)
        self._most = most
        self._work = work

    def _needs_another(self) -> bool:
        return not self._idle

    def _take(self) -> list[T]:
        """The next batch; empty when closed."""
        with self._condition:
            self._idle += 1
            while not self._ready and not self._closed:
                self._condition.wait()
            self._idle -= 1
            batch: list[T] = []
            while self._ready and len(batch) < self._most:
                batch.append(self._pop(next(iter(self._ready))))
            return batch

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._work(batch)
            except Exception:
                _log.exception("a batch of the bus's %s failed", self._name)
            del batch
