"""A bounded pool of threads that serves its owners in turn: a client with a thousand tasks waits behind itself."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable

from walytis_vault.bus.workers import Workers

_log = logging.getLogger(__name__)

Task = Callable[[], None]


class FairPool(Workers[Task]):
    """See `Workers`.

    Args:
        name: for thread names and logs.
        threads: the bound.
        per_owner: how many of them one owner may have; None for all.
    """

    def __init__(self, name: str, threads: int, *, per_owner: int | None = None) -> None:
        super().__init__(name, threads)
        self._per_owner = per_owner or threads
        self._held: Counter[Hashable] = Counter()
        """Threads that each owner has."""

    def _needs_another(self) -> bool:
        return self._waiting > self._idle

    def _next(self) -> Hashable | None:
        """Whose turn it is."""
        return next((owner for owner in self._ready if self._held[owner] < self._per_owner), None)

    def _take(self) -> tuple[Hashable, Task] | None:
        with self._condition:
            self._idle += 1
            while (owner := self._next()) is None and not self._closed:
                self._condition.wait()
            self._idle -= 1
            if owner is None or self._closed:
                return None
            self._held[owner] += 1
            return owner, self._pop(owner)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            owner, task = taken
            try:
                task()
            except Exception:
                _log.exception("a task of the bus pool %s failed", self._name)
            del taken, task
            with self._condition:
                self._held[owner] -= 1
                if not self._held[owner]:
                    del self._held[owner]
                if self._ready:
                    self._condition.notify()
