"""Which contents are here, and which of them changed since somebody last asked: for views that follow the store.

Whoever follows keeps a mark of its own and asks when it wants to know: nothing is called back, and a follower that
was away too long, or began anew, is told to look at everything again. Used by index.py.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from walytis_vault.adapters.storage.database import Database
from walytis_vault.projections.base import AWAY, ERASED, HERE

REMEMBERED: Final = 100_000
"""Changes (a count) that are told one by one; whoever missed more looks at everything."""
AT_ONCE: Final = 512
"""Contents (a count) in one statement."""


class Presence:
    """Threads may share it."""

    def __init__(self, database: Database, remembered: int = REMEMBERED) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._changed: deque[bytes] = deque(maxlen=remembered)
        self._count = 0

    def note(self, content_ids: Iterable[bytes]) -> None:
        """Keys or bytes of these came or went. Call it after the commit: whoever is told looks at once."""
        with self._lock:
            for content_id in content_ids:
                self._changed.append(content_id)
                self._count += 1

    def changed(self, mark: int) -> tuple[int, Sequence[bytes] | None]:
        """See `Local.changed`."""
        with self._lock:
            missed = self._count - mark
            if not missed:
                return mark, ()
            if mark < 0 or not 0 < missed <= len(self._changed):
                return self._count, None
            found = dict.fromkeys(islice(self._changed, len(self._changed) - missed, None))
            return self._count, tuple(found)

    def kept(self, content_ids: Sequence[bytes]) -> list[int]:
        """See `Local.kept`. Raises StorageError."""
        found: dict[bytes, int] = {}
        with self._database.read() as connection:
            for start in range(0, len(content_ids), AT_ONCE):
                some = content_ids[start : start + AT_ONCE]
                marks = ",".join("?" * len(some))
                here = (
                    f"SELECT content_id FROM contents WHERE place <> 0 AND slot IS NOT NULL AND content_id IN ({marks})"
                    " AND NOT EXISTS (SELECT 1 FROM lost l WHERE l.content_id = contents.content_id AND l.part = 'key')"
                )
                going = f"SELECT content_id FROM forgetting WHERE content_id IN ({marks})"
                gone = f"SELECT content_id FROM forgotten WHERE content_id IN ({marks})"
                for sql, kept in ((here, HERE), (going, AWAY), (gone, ERASED)):
                    for (content_id,) in connection.execute(sql, some):
                        found[content_id] = kept
        return [found.get(content_id, AWAY) for content_id in content_ids]
