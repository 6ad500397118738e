"""Subscriptions: every change once, in order, from any position; and the views that strangers bring."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from support.memory_log import MemoryLog
from support.view_world import (
    Vault,
    admitted,
    at,
    ballot,
    content,
    founded,
    hosting,
    proposed,
    published,
    random_history,
)
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import MisuseError, UnknownIdError
from walytis_vault.projections.audit import AuditView
from walytis_vault.projections.base import Local
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import OWN, load_views
from walytis_vault.projections.store import ViewStore


def all_changes(host: ProjectionHost, view: str, limit: int, **filters: Any) -> list[Any]:
    found: list[Any] = []
    after = -1
    position = 0
    while position != after:
        after = position
        some, position = host.changes(view, after=after, limit=limit, filters=filters)
        assert all(after < c.position <= position for c in some)
        found += some
    return found


@pytest.mark.parametrize("view", ["events", "catalogue", "timeline", "ballots", "members", "holders"])
def test_pieces_of_any_size_give_the_same_changes(tmp_path: Path, view: str) -> None:
    """No gap and no repeat, whatever the limit; positions only grow."""
    log = MemoryLog()
    log.add(random_history(3, 60))
    with hosting(tmp_path, log) as host:
        host.catch_up()
        whole = all_changes(host, view, 5000)
        assert whole
        assert [c.position for c in whole] == sorted(c.position for c in whole)
        for limit in (1, 2, 7):
            assert all_changes(host, view, limit) == whole


def test_a_change_carries_the_row_as_it_is_now(tmp_path: Path) -> None:
    """A publish and what follows each give a change of the catalogue; a ballot changes every content that it covers."""
    log, vault = MemoryLog(), Vault()
    vault.has(1, "one")
    with hosting(tmp_path, log, vault=vault) as host:
        log.add([at(published(1), "did:a", 2), at(published(2), "did:a", 3)])
        host.catch_up()
        (first, _), position = host.changes("catalogue", after=0)
        assert (first.position, first.type, first.author) == (1, "content-published/1", "did:a")
        assert first.ids == (content(1).hex(),)
        assert first.row is not None
        assert (first.row["state"], first.row["name"]) == ("available", "one")
        assert host.changes("catalogue", after=position) == ([], 2)
        log.add([at(proposed(1, [1, 2], ["did:a"]), "did:b", 4), at(proposed(1, [1, 2], ["did:a"]), "did:a", 4)])
        host.catch_up()
        later, position = host.changes("catalogue", after=position)
        assert position == 4
        assert {(c.position, c.type, c.ids[0]) for c in later} == {
            (4, "forgetting-proposed/1", content(1).hex()),
            (4, "forgetting-proposed/1", content(2).hex()),
        }
        assert all(c.row is not None and c.row["state"] == "forgetting" for c in later)


def test_removal_changes_the_ballots_that_it_settles(tmp_path: Path) -> None:
    """The event that settled a ballot is the one that its change names."""
    log = MemoryLog()
    log.add(
        [
            at(founded(), "did:a", 1),
            at(admitted("did:b"), "did:a", 2),
            at(proposed(1, [1], ["did:a", "did:b"]), "did:a", 3),
            at(ev.MemberRemoved(member="did:b", accepted=()), "did:a", 4),
        ]
    )
    with hosting(tmp_path, log) as host:
        host.catch_up()
        last = host.changes("ballots", after=3)[0]
        assert [(c.type, c.ids, c.row["state"] if c.row else None) for c in last] == [
            ("member-removed/1", (ballot(1).hex(),), "carried")
        ]


def test_changes_can_be_filtered(tmp_path: Path) -> None:
    """Events by type, author, content and ballot; rows by any of their fields and by label."""
    log, vault = MemoryLog(), Vault()
    vault.has(1, "one", labels=["mine"])
    log.add(
        [
            at(published(1), "did:a", 2),
            at(published(2), "did:b", 3),
            at(proposed(1, [2], ["did:a", "did:b"]), "did:a", 4),
            at(published(3, revises=2), "did:b", 5),
        ]
    )
    with hosting(tmp_path, log, vault=vault) as host:
        host.catch_up()

        def positions(view: str, **filters: Any) -> list[int]:
            found, upto = host.changes(view, after=0, filters=filters)
            assert upto == 4
            return [c.position for c in found]

        assert positions("events", type="content-published/1") == [1, 2, 4]
        assert positions("events", author="did:a") == [1, 3]
        assert positions("events", content_id=content(2).hex()) == [2, 3, 4]
        assert positions("events", content_id=content(3).hex()) == [4]
        assert positions("events", content_id=content(2).hex(), type="content-published/1") == [2, 4]
        assert positions("events", ballot_id=ballot(1).hex()) == [3]
        assert positions("catalogue", label="mine") == [1]
        assert positions("catalogue", state="forgetting") == [2, 3, 4, 4]
        assert positions("catalogue", author="did:b", type="forgetting-proposed/1") == [3]
        assert positions("catalogue", content_id=content(1).hex()) == [1]
        for view, filters in (("events", {"label": "x"}), ("catalogue", {"colour": "x"}), ("events", {"type": "x"})):
            with pytest.raises(MisuseError):
                host.changes(view, after=0, filters=filters)
        with pytest.raises(UnknownIdError):
            host.changes("nonsense", after=0)
        with pytest.raises(MisuseError):
            host.changes("catalogue", after=-1)


@pytest.mark.parametrize("restart", [False, True])
def test_a_retried_event_reaches_subscribers_that_are_beyond_it(
    tmp_path: Path, make_store: Callable[[Path], ViewStore], restart: bool
) -> None:
    """Who has caught up gets what a view folded late with the next event that is there, also after a restart."""

    class Fussy(Catalogue):
        ready = False

        def __init__(self, view: Any, local: Local | None = None) -> None:
            super().__init__(view, local)
            publish = self.handlers[ev.ContentPublished]

            def maybe(connection: Any, event: Any, origin: ev.Origin, position: int) -> None:
                if position == 2 and not Fussy.ready:
                    raise ValueError("not yet")
                publish(connection, event, origin, position)

            self.handlers[ev.ContentPublished] = maybe

    Fussy.name = "catalogue"
    log = MemoryLog()
    log.add([at(published(i), "did:a", i + 1) for i in range(1, 5)])
    with hosting(tmp_path, log, views=[Fussy], make_store=make_store) as host:
        host.catch_up()
        assert host.status()["catalogue"].parked == 1
        _, caught_up = host.changes("catalogue", after=0)
        Fussy.ready = True
        assert host.retry("catalogue") == 0
        assert host.changes("catalogue", after=caught_up) == ([], 4)
        log.void.add(log.add([at(published(5), "did:a", 6)]))
        log.add([at(published(6), "did:a", 7)])
        if not restart:
            host.catch_up()
            late, position = host.changes("catalogue", after=caught_up)
    if restart:
        with hosting(tmp_path, log, views=[Fussy], make_store=make_store) as host:
            host.catch_up()
            late, position = host.changes("catalogue", after=caught_up)
            assert host.changes("catalogue", after=position) == ([], 6)
    assert position == 6
    assert {(c.position, c.ids[0]) for c in late} == {(6, content(2).hex()), (6, content(6).hex())}


def test_sources_cannot_be_subscribed_to(tmp_path: Path) -> None:
    """The audit is queried; its changes are the events."""
    from walytis_vault.adapters.storage.view_store import SqliteViewStore

    log = MemoryLog()
    store = SqliteViewStore(tmp_path / "views.db")
    host = ProjectionHost(log, log, store, OWN, sources=[AuditView(lambda _after, _most, _filters: [])])
    try:
        assert host.query("audit").rows == ()
        assert "audit" in host.names
        assert host.row_type("audit").__name__ == "AuditRow"
        with pytest.raises(MisuseError, match="events"):
            host.changes("audit", after=0)
        with pytest.raises(MisuseError, match="no place"):
            host.replay("catalogue")
    finally:
        host.close()
        store.close()


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="walytis_vault.projections")


def test_views_of_installed_packages_are_loaded() -> None:
    """An entry point that names a view joins ours; whatever else it names is left out with a reason."""
    here = "support.plugin_views"
    views, problems = load_views(
        [
            entry("good", f"{here}:Authors"),
            entry("absent", "no_such_package:View"),
            entry("raises", f"{here}:missing"),
            entry("not-a-view", f"{here}:NOT_A_VIEW"),
            entry("taken", f"{here}:Taken"),
            entry("unnamed", f"{here}:BadName"),
            entry("rowless", f"{here}:Rowless"),
        ]
    )
    assert [v.name for v in views] == [*(v.name for v in OWN), "authors"]
    assert len(problems) == 6
    assert any("'taken'" in p and "name 'ballots' is taken" in p for p in problems)
    assert load_views([]) == (list(OWN), [])
