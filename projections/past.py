"""Views of the past, kept for a while: folded for the first question, asked again for the pages that follow.

Each stands in a temporary store. It keeps at most a few, drops each when nobody asks it for a while and all when
something is forgotten here, and lets whoever is reading one finish first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from walytis_vault.domain.errors import StorageError
from walytis_vault.projections.base import Page
from walytis_vault.projections.replay import Replay

KEPT: Final = 4
"""Views of the past that stay open (a count)."""
IDLE_S: Final = 300.0
"""After so many seconds without a question a view of the past is dropped."""

Moment = tuple[int, int | None]
"""(last position, latest time in ms by the authors' clocks or None)."""


class _Kept:
    """One view of the past; `folding` is held until it is there."""

    def __init__(self) -> None:
        self.folding = threading.Lock()
        self.replay: Replay | None = None
        self.users = 0
        self.used = time.monotonic()
        self.dropped = False


class Past:
    """The views of the past of one host. Threads may share it."""

    def __init__(self, fold: Callable[[str, Moment], Replay], most: int = KEPT, idle_s: float = IDLE_S) -> None:
        self._fold = fold
        self._most = most
        self._idle_s = idle_s
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, Moment], _Kept] = {}
        self._closed = False

    def query(
        self, view: str, moment: Moment, *, limit: int | None, cursor: str | None, filters: dict[str, Any]
    ) -> Page:
        """Rows of a view as of a moment.

        Raises:
            UnknownIdError, MisuseError, StorageError.
        """
        kept = self._take(view, moment)
        try:
            with kept.folding:
                if kept.replay is None:
                    kept.replay = self._fold(view, moment)
            return kept.replay.query(limit=limit, cursor=cursor, filters=filters)
        except BaseException:
            if kept.replay is None:
                self._drop(lambda key: key == (view, moment))
            raise
        finally:
            self._give_back(kept)

    def _take(self, view: str, moment: Moment) -> _Kept:
        key = view, moment
        with self._lock:
            if self._closed:
                raise StorageError("the views are closed")
            kept = self._kept.pop(key, None) or _Kept()
            self._kept[key] = kept  # the latest used stands last
            kept.users += 1
            too_many = list(self._kept)[: -self._most]
        self._drop(lambda key: key in too_many)
        return kept

    def _give_back(self, kept: _Kept) -> None:
        with self._lock:
            kept.users -= 1
            kept.used = time.monotonic()
            done = kept.dropped and not kept.users
            self._watch()
        if done and kept.replay is not None:
            kept.replay.close()

    def _watch(self) -> None:
        """Look after the idle ones when the first may be one. The caller holds the lock."""
        if self._timer is None and self._kept and not self._closed:
            self._timer = threading.Timer(self._idle_s, self._drop_idle)
            self._timer.daemon = True
            self._timer.start()

    def _drop_idle(self) -> None:
        with self._lock:
            self._timer = None
            before = time.monotonic() - self._idle_s
            idle = {key for key, kept in self._kept.items() if not kept.users and kept.used <= before}
        self._drop(lambda key: key in idle)
        with self._lock:
            self._watch()

    def _drop(self, which: Callable[[tuple[str, Moment]], bool]) -> None:
        with self._lock:
            found = [self._kept.pop(key) for key in list(self._kept) if which(key)]
            for kept in found:
                kept.dropped = True
            idle = [kept for kept in found if not kept.users]
        for kept in idle:
            if kept.replay is not None:
                kept.replay.close()

    def forget(self) -> None:
        """Something was forgotten: keep nothing that was opened before."""
        self._drop(lambda _key: True)

    def close(self) -> None:
        """Drop all; nothing can be asked any more. Idempotent."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        self.forget()
