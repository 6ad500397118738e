"""Works on many small tasks at once: whoever is idle takes all that waits, from each owner in turn.

Where a task costs little and the wait for disk and chain costs much, one worker with a hundred tasks does them
in the time of one. Refuses nothing by itself: the server bounds how many tasks each owner may have.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Batcher(Generic[T]):
    """Up to `threads` worker threads, started when first needed.

    Args:
        name: for thread names and logs.
        threads: the bound; more than one, so that one batch is prepared while another is made durable.
        most: tasks in one batch (a count).
        work: does a batch, on a worker; tells each task's owner itself and raises nothing.
    """

    def __init__(self, name: str, threads: int, most: int, work: Callable[[list[T]], None]) -> None:
        self._name = name
        self._bound = threads
        self._most = most
        self._work = work
        self._ready: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._condition = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._waiting = 0
        self._closed = False

    def submit(self, owner: Hashable, task: T) -> None:
        """Queue a task behind the owner's earlier ones. After `close` it is dropped. Never blocks."""
        with self._condition:
            if self._closed:
                return
            queue = self._ready.get(owner)
            if queue is None:
                queue = self._ready[owner] = deque()
            queue.append(task)
            self._waiting += 1
            if self._idle:
                self._condition.notify()
            elif len(self._threads) < self._bound:
                thread = threading.Thread(target=self._run, name=f"bus-{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()

    @property
    def depth(self) -> int:
        """Tasks that wait for a worker (a count)."""
        return self._waiting

    def close(self) -> None:
        """Drop what waits and let the workers end after their current batch."""
        with self._condition:
            self._closed = True
            self._ready.clear()
            self._waiting = 0
            self._condition.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds in total for the workers; True if all have ended."""
        per_thread = timeout / max(1, len(self._threads))
        for thread in self._threads:
            thread.join(per_thread)
        return not any(t.is_alive() for t in self._threads)

    def _take(self) -> list[T]:
        """The next batch; empty when closed."""
        with self._condition:
            self._idle += 1
            while not self._ready and not self._closed:
                self._condition.wait()
            self._idle -= 1
            batch: list[T] = []
            while self._ready and len(batch) < self._most:
                owner, queue = self._ready.popitem(last=False)
                batch.append(queue.popleft())
                if queue:
                    self._ready[owner] = queue
            self._waiting -= len(batch)
            return batch

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._work(batch)
            except Exception:
                _log.exception("a batch of the bus's %s failed", self._name)
            del batch
