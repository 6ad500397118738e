"""Threads that work on tasks of many owners: what the pool (a task at a time) and the batcher (many) share.

Owners are served in turn. Refuses nothing by itself: the server bounds how many tasks each owner may have.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Workers(ABC, Generic[T]):
    """Up to `threads` worker threads, started when first needed."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._bound = threads
        self._ready: OrderedDict[Hashable, deque[T]] = OrderedDict()
        """What waits, by owner; whose turn it is comes first."""
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
            self._ready.setdefault(owner, deque()).append(task)
            self._waiting += 1
            if self._needs_another() and len(self._threads) < self._bound:
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
        """Drop what waits and let the threads end after what they are at."""
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

    @abstractmethod
    def _needs_another(self) -> bool:
        """Whether the threads that there are do not suffice for what waits. Called under the condition."""

    @abstractmethod
    def _run(self) -> None:
        """Work until closed. On a thread of its own."""

    def _pop(self, owner: Hashable) -> T:
        """An owner's first task; the owner goes behind the others. Called under the condition."""
        queue = self._ready.pop(owner)
        self._waiting -= 1
        task = queue.popleft()
        if queue:
            self._ready[owner] = queue
        return task
