"""Changing views beside the fold: rebuilding them, retrying what was parked, sealing and forgetting.

The half of the host that commands and the eraser call. A view that raises here costs only itself: one whose tables
cannot be made is left out until the next start, and `status` says why.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from walytis_vault.domain.errors import MisuseError, StorageError, StorageUnavailableError
from walytis_vault.domain.faults import fault
from walytis_vault.projections.announcing import Announcing
from walytis_vault.projections.asking import Asking
from walytis_vault.projections.blame import is_its_own, sentence
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.runner import Runner
from walytis_vault.projections.store import Connection

Made = TypeVar("Made")
Building = list[tuple[LiveView, Runner]]
"""Views, and the generations that are being built."""


class Repairing(Announcing, Asking):
    """Base of the host."""

    _epoch: Callable[[], int]
    _work: threading.RLock
    _thread: threading.Thread | None
    _follows_epoch: bool
    _reset: bool
    _poked: bool
    _lost: bool
    _unforgotten: set[bytes]

    def catch_up(self) -> int:
        """See `ProjectionHost.catch_up`."""
        raise NotImplementedError

    def _advance(self) -> bool:
        raise NotImplementedError

    def _fold(self, runners: Sequence[Runner], start: int, upto: int | None = None) -> bool:
        raise NotImplementedError

    def _lose(self, error: StorageUnavailableError) -> None:
        raise NotImplementedError

    def _lowest(self) -> int:
        raise NotImplementedError

    def _poke(self) -> None:
        """Wake the folding thread."""
        self._poked = True
        self._horizon.wake()

    def _each(
        self, lives: Iterable[LiveView], make: Callable[[LiveView, Connection], Made]
    ) -> list[tuple[LiveView, Made]]:
        """Let each view make its tables, in a transaction of its own; leave out the views that cannot.

        Raises:
            StorageError: the store refused, whatever the view says.
        """
        made = []
        for live in lives:
            try:
                with self._store.transaction() as connection:
                    made.append((live, make(live, connection)))
            except Exception as e:
                if not is_its_own(e):
                    raise
                self._broken[live.name] = f"left out until the node starts again: {sentence(e)}"
                # A new dictionary: other threads may be going through the old one.
                self._views = {name: view for name, view in self._views.items() if view is not live}
        return made

    # Rebuilding

    def reset_all(self) -> None:
        """Events that were folded are void now, or will be when the log's transaction commits.

        Only sets a flag: the folding thread rebuilds. With an `epoch` it does so when that has changed.
        """
        self._reset = not self._follows_epoch
        self._poke()

    def rebuild(self, *names: str) -> None:
        """Build views anew from the log beside the live ones, then swap. Without names: all of them.

        Runs in the caller's thread; queries and new events go on meanwhile.
        Raises:
            UnknownIdError: no such view. MisuseError: it is being rebuilt already.
            ViewFailedError: it could not be made anew, and is left out now. Others that were named are rebuilt.
            StorageError: the store refused, or was away; the live views are as they were.
        """
        lives = [self.live(n) for n in names] if names else list(self._views.values())
        with self._work:
            if any(live.building for live in lives):
                raise MisuseError("a rebuild of this view is already under way")
            building = self._begin(lives)
        self._build(building)
        for name in names:
            self.live(name)

    def _begin(self, lives: Iterable[LiveView]) -> Building:
        """Make the next generations of views, except of those that are being built already."""
        with self._work:
            idle = [live for live in lives if live.building is None]
            begun = self._each(idle, lambda live, connection: live.begin_building(connection, self._epoch()))
            for live, runner in begun:
                live.building = runner
            return begun

    def _build(self, begun: Building) -> None:
        """Fill the generations that were begun, and swap."""
        building: Building | None = begun
        try:
            while building and not self._closing:
                building = self._build_step(building)
                self._advance()
        finally:
            for live, _ in begun:
                live.building = None
            self._poke()

    def _build_step(self, building: Building) -> Building | None:
        """Fold one batch into the new generations, or make their indexes, or swap. None when all is done."""
        with self._work:
            if any(live.building is not runner for live, runner in building):
                raise StorageUnavailableError("the views' server went away during the rebuild: repeat it")
            growing = [r for _, r in building if not r.stopped]
            start = min((r.position for r in growing), default=0)
            if growing and self._fold(growing, start):
                fault("projections.rebuild")
                return building
            if any(not runner.indexed for _, runner in building):
                runners = {live.name: runner for live, runner in building}
                self._each([live for live, _ in building], lambda live, c: runners[live.name].index(c))
                return [(live, runner) for live, runner in building if runner.indexed]
            self._swap(building)
            return None

    def _swap(self, building: Building) -> None:
        with self._store.transaction() as connection:
            for live, runner in building:
                live.swap(connection, runner)
        old = [(live, live.adopt(runner)) for live, runner in building]
        for live, _ in building:
            live.behind = False
        self._announce(self._lowest())
        # Only now, so that no query meets tables that vanish under the view that it asks. Where this does not work
        # out, the next rebuild or start does it.
        for live, runner in old:
            with contextlib.suppress(StorageError):
                self._clear(live, runner)

    def _clear(self, live: LiveView, old: Runner) -> None:
        try:
            with self._store.transaction() as connection:
                live.clear(connection, old)
        except Exception as e:
            if not is_its_own(e):
                raise
            live.runner.trouble = f"its drop failed: {sentence(e)}"

    # Retrying, sealing and forgetting

    def retry(self, name: str) -> int:
        """Fold the parked events of a view again; returns how many are still parked.

        Its subscribers, who are beyond these events, get the rows with the next event.
        Raises:
            UnknownIdError: no such view. ViewFailedError: it is left out. StorageError.
        """
        live = self.live(name)
        with self._work:
            runner = live.runner
            for position, _ in runner.parked():
                found = next(iter(self._log.read(after=position - 1, limit=1)), None)
                if found is not None and found.position == position:
                    runner.retry(position, self._decode(found))
            live.reset_hash()
            runner.stopped = runner.trouble = None
        self._poke()
        if self._thread is None:
            self.catch_up()
        return len(runner.parked())

    def seal(self) -> None:
        """The vault was locked: drop everything opened, here and, by calling them, at those who listen."""
        self._past.forget()
        with self._work:
            for runner in self._runners():
                runner.seal()
        self._announce(self._lowest())

    def forget(self, contents: Sequence[bytes]) -> None:
        """These contents were erased here: drop their sealed descriptors and everything opened.

        Nothing opened is left whatever is raised. What a store that is away still holds is sealed under keys that are
        gone; it is dropped when the store is back.
        Raises:
            StorageError: the store refused: repeat it.
        """
        self._past.forget()
        refused: StorageError | None = None
        with self._work:
            for runner in self._runners():
                try:
                    runner.forget(contents)
                except StorageUnavailableError as e:
                    self._unforgotten.update(contents)
                    if not self._lost:
                        self._lose(e)
                except StorageError as e:
                    refused = e
        if refused is not None:
            raise refused

    def _runners(self) -> list[Runner]:
        return [r for live in self._views.values() for r in (live.runner, live.building) if r is not None]
