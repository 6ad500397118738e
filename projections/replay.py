"""A view as it was: the same fold over the beginning of the log, in a temporary store that is gone when closed.

Contents that are forgotten by now show as gaps there too: their keys do not come back. It follows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from eventsourcing.dcb.api import DCBSequencedEvent

from walytis_vault.domain.errors import VaultError
from walytis_vault.projections.base import Page, Request
from walytis_vault.projections.blame import blaming, is_its_own
from walytis_vault.projections.log import EventLog
from walytis_vault.projections.runner import MARKS, PARKED, Decoded, Runner
from walytis_vault.projections.store import ViewStore

BATCH: Final = 500


class Replay:
    """A view at an earlier position. A context manager."""

    def __init__(self, runner: Runner, store: ViewStore) -> None:
        self._runner = runner
        self._store = store

    @property
    def position(self) -> int:
        """Position up to which the log was folded."""
        return self._runner.position

    def fill(
        self, log: EventLog, decode: Callable[[DCBSequencedEvent], Decoded], until: int, until_ms: int | None
    ) -> None:
        """Fold the log up to a position, leaving out events that their authors' clocks put after `until_ms`.

        Raises:
            StorageError: the store refused.
        """
        runner = self._runner
        with self._store.transaction() as connection:
            for table in (PARKED, MARKS):
                self._store.create(connection, table)
            runner.open(connection)
        while runner.position < until:
            found = [e for e in log.read(after=runner.position, limit=BATCH) if e.position <= until]
            looked = found[-1].position if len(found) == BATCH else until
            decoded = [(e.position, decode(e)) for e in found]
            events = [(p, e) for p, e in decoded if until_ms is None or _time(e) <= until_ms]
            try:
                with self._store.transaction() as connection:
                    runner.fold(connection, events, looked)
            except Exception as e:
                runner.roll_back()
                if not is_its_own(e):
                    raise
                runner.fold_slowly(events, looked)
                if runner.stopped:
                    return
            else:
                runner.committed()

    def query(
        self, *, limit: int | None = 100, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> Page:
        """As `ProjectionHost.query`, of then."""
        with blaming(self._runner.view.name):
            page = self._runner.view.page(Request(limit=limit, cursor=cursor, filters=dict(filters or {})))
        return Page(rows=page.rows, cursor=page.cursor, position=self.position)

    def close(self) -> None:
        """Drop the temporary store. Idempotent."""
        self._store.close()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _time(event: Decoded) -> int:
    return 0 if isinstance(event, VaultError) else event.origin.time_ms
