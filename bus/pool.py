"""A bounded pool of threads that serves its owners in turn: a client with a thousand tasks waits behind itself.

Refuses nothing by itself: the server bounds how many tasks each owner may have before it submits them.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable

_log = logging.getLogger(__name__)

Task = Callable[[], None]


class FairPool:
    """Up to `threads` worker threads, started when first needed.

    Args:
        name: for thread names and logs.
        threads: the bound.
        per_owner: how many of them one owner may have; None for all.
    """

    def __init__(self, name: str, threads: int, *, per_owner: int | None = None) -> None:
        self._name = name
        self._bound = threads
        self._per_owner = per_owner or threads
        self._held: Counter[Hashable] = Counter()
        """Threads that each owner has."""
        self._ready: OrderedDict[Hashable, deque[Task]] = OrderedDict()
        self._condition = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._waiting = 0
        self._closed = False

    def submit(self, owner: Hashable, task: Task) -> None:
        """Queue a task behind the owner's earlier ones. After `close` it is dropped. Never blocks."""
        with self._condition:
            if self._closed:
                return
            queue = self._ready.get(owner)
            if queue is None:
                queue = self._ready[owner] = deque()
            queue.append(task)
            self._waiting += 1
            if self._waiting > self._idle and len(self._threads) < self._bound:
                thread = threading.Thread(target=self._run, name=f"bus-{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            else:
                self._condition.notify()

    @property
    def depth(self) -> int:
        """Tasks that wait for a thread (a count)."""
        return self._waiting

    def close(self) -> None:
        """Drop what waits and let the threads end after their current task."""
        with self._condition:
            self._closed = True
            self._ready.clear()
            self._waiting = 0
            self._condition.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds in total for the threads; True if all have ended."""
        per_thread = timeout / max(1, len(self._threads))
        for thread in self._threads:
            thread.join(per_thread)
        return not any(t.is_alive() for t in self._threads)

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
            queue = self._ready.pop(owner)
            task = queue.popleft()
            self._waiting -= 1
            self._held[owner] += 1
            if queue:
                self._ready[owner] = queue
            return owner, task

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
