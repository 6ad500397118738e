"""`walytis_vault.testing`, as authors of views use it: our own views keep the contract, and wrong ones do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import MisuseError
from walytis_vault.projections.ballots import BallotsView
from walytis_vault.projections.base import Local, Page, Request, ViewRecorder
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.holders import Holders
from walytis_vault.projections.keyed import KeyedView
from walytis_vault.projections.members import MembersView
from walytis_vault.projections.store import Connection
from walytis_vault.projections.timeline import Timeline
from walytis_vault.testing import MEMBERS, ViewContract, at, fold, published, sample_history


class TestCatalogue(ViewContract):
    """The contract on `catalogue`."""

    view_type = Catalogue


class TestTimeline(ViewContract):
    """The contract on `timeline`."""

    view_type = Timeline


class TestBallots(ViewContract):
    """The contract on `ballots`."""

    view_type = BallotsView


class TestMembers(ViewContract):
    """The contract on `members`."""

    view_type = MembersView


class TestHolders(ViewContract):
    """The contract on `holders`."""

    view_type = Holders


class CountRow(msgspec.Struct, frozen=True, kw_only=True):
    """How often a member published."""

    member: str
    count: int


class Counts(KeyedView):
    """Publications by member."""

    name = "counts"
    row = CountRow

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.handlers = {ev.ContentPublished: self._published}

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        row = self.get(connection, origin.author) or CountRow(member=origin.author, count=0)
        self.put(connection, origin.author, msgspec.structs.replace(row, count=row.count + 1), position)


class TestCounts(ViewContract):
    """The contract on a small view."""

    view_type = Counts


class LastWins(Counts):
    """Wrong: what arrives last decides."""

    name = "lastwins"

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        self.put(connection, "last", CountRow(member=origin.author, count=event.padded_length), position)


class InMemory(Counts):
    """Wrong: what it counts is not in its tables."""

    name = "inmemory"

    numbers = itertools.count()

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        self.put(connection, origin.author, CountRow(member=origin.author, count=next(self.numbers)), position)


class Silent(Counts):
    """Wrong: says nothing of its changes."""

    name = "silent"

    def touch(self, key: bytes, position: int) -> None:
        pass


class Leaking(Counts):
    """Wrong: stores a name."""

    name = "leaking"

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        opened = self.local.unseal(event.content_id, event.descriptor)
        assert opened is not None
        self.put(connection, str(opened.name), CountRow(member=origin.author, count=1), position)


class Failing(Counts):
    """Wrong: cannot fold what it asked for."""

    name = "failing"

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        raise ValueError("no")


class Endless(Counts):
    """Wrong: gives everything whatever was asked for."""

    name = "endless"

    def page(self, request: Request) -> Page:
        return super().page(Request(limit=None))


Test = Callable[[ViewContract, Path], None]
WRONG: list[tuple[type[Counts], Any]] = [
    (LastWins, ViewContract.test_the_order_of_arrival_does_not_matter),
    (InMemory, ViewContract.test_a_rebuild_changes_nothing),
    (Silent, ViewContract.test_changes_lead_to_rows),
    (Leaking, ViewContract.test_nothing_unsealed_is_stored),
    (Failing, ViewContract.test_something_reaches_it),
    (Endless, ViewContract.test_unknown_filters_are_refused),
    (Endless, ViewContract.test_pages_make_up_the_whole),
]


@pytest.mark.parametrize(("view", "test"), WRONG, ids=[f"{v.__name__}-{t.__name__}" for v, t in WRONG])
def test_the_contract_catches_what_is_wrong(view: type[Counts], test: Test, tmp_path: Path) -> None:
    """A view with a fault fails the test that is there for it."""
    contract = type("Contract", (ViewContract,), {"view_type": view})()
    with pytest.raises(AssertionError):
        test(contract, tmp_path)


def test_the_sample_history_has_every_event() -> None:
    """What authors of views test with leaves no type of event out."""
    assert {recorded.event.TOPIC for recorded in sample_history()} == set(ev.PRODUCT_EVENTS.topics)


def test_a_keyed_view_filters_sorts_and_pages(tmp_path: Path) -> None:
    """Every field is a filter, by value or by its text; the sort turns around; a removal is a change."""

    class Sizes(Counts):
        """Sizes of what is there."""

        name = "sizes"

        def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
            super().__init__(view, local)
            self.handlers[ev.ContentRetracted] = self._retracted

        def _published(
            self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int
        ) -> None:
            row = CountRow(member=origin.author, count=event.padded_length)
            self.put(connection, event.content_id.hex(), row, position)

        def _retracted(
            self, connection: Connection, event: ev.ContentRetracted, _origin: ev.Origin, position: int
        ) -> None:
            self.remove(connection, event.content_id.hex(), position)

    ada, bob, _ = MEMBERS
    history = [at(published(n, size=n % 3), (ada, bob)[n % 2], n + 1) for n in range(600)]
    gone = ev.ContentRetracted(content_id=published(0).content_id)
    with fold(Sizes, [*history, at(gone, ada, 700)], tmp_path) as host:
        rows: Any = host.query("sizes", limit=None).rows
        assert len(rows) == 599
        assert host.query("sizes", limit=None, filters={"sort": "-key"}).rows == rows[::-1]
        some: Any = host.query("sizes", limit=None, filters={"member": bob, "count": "1"}).rows
        assert some == tuple(r for r in rows if (r.member, r.count) == (bob, 1))
        assert some == host.query("sizes", limit=None, filters={"member": bob, "count": 1}).rows
        changes, _ = host.changes("sizes", after=600)
        assert [(c.ids, c.row) for c in changes] == [((gone.content_id.hex(),), None)]
        for wrong in ({"sort": "size"}, {"colour": 1}):
            with pytest.raises(MisuseError):
                host.query("sizes", filters=wrong)
