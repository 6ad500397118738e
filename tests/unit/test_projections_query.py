"""Queries: filters, sorts, pages and states of the views, and what they refuse."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.memory_log import MemoryLog
from support.view_world import Vault, at, ballot, content, founded, hosting, proposed, published
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import MisuseError, StorageFullError
from walytis_vault.projections.audit import AuditRow, AuditView
from walytis_vault.projections.base import Request
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.search import Search

T0 = 1_700_000_000_000


class World:
    """A host over 40 contents of two authors, of which this node has the even ones."""

    def __init__(self, host: ProjectionHost, log: MemoryLog, vault: Vault) -> None:
        self.host, self.log, self.vault = host, log, vault

    def add(self, *events: ev.Recorded) -> None:
        self.log.add(list(events))
        self.host.catch_up()

    def ids(self, view: str = "catalogue", **filters: Any) -> list[str]:
        return [r.content_id for r in self.rows(view, **filters)]

    def rows(self, view: str = "catalogue", **filters: Any) -> list[Any]:
        return list(self.host.query(view, limit=None, filters=filters).rows)

    def numbers(self, **filters: Any) -> list[int]:
        known = {content(i).hex(): i for i in range(100)}
        return [known[i] for i in self.ids(**filters)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    log, vault = MemoryLog(), Vault()
    with hosting(tmp_path, log, vault=vault) as host:
        made = World(host, log, vault)
        for i in range(0, 40, 2):
            vault.has(
                i,
                f"Straße {i}.txt" if i < 20 else f"photo {i}.png",
                media_type="text/plain" if i < 20 else "image/png",
                labels=["all", f"tens-{i // 10}"],
            )
        made.add(
            at(founded(), "did:a", 1),
            *(at(published(i, size=1000 + 10 * i), f"did:{'ab'[i % 2]}", i + 2) for i in range(40)),
        )
        yield made


def test_the_newest_come_first(world: World) -> None:
    """Without a sort, rows are in the shared order, last first; `order` turns it round."""
    assert world.numbers() == list(range(39, -1, -1))
    assert world.numbers(sort="order") == list(range(40))
    assert world.numbers(sort="-time") == list(range(39, -1, -1))
    assert world.numbers(sort="size") == list(range(40))


@pytest.mark.parametrize("sort", ["order", "-order", "time", "-time", "size", "-size"])
@pytest.mark.parametrize("filters", [{}, {"label": "all"}, {"author": "did:a"}, {"state": "pending"}])
def test_pages_follow_each_other_without_gap_or_repeat(world: World, sort: str, filters: dict[str, Any]) -> None:
    """Every size of page gives the same rows in the same order, and the last page has no cursor."""
    wanted = world.ids(sort=sort, **filters)
    for limit in (1, 7, len(wanted), 100):
        found: list[Any] = []
        cursor = None
        while True:
            page = world.host.query("catalogue", limit=limit, cursor=cursor, filters={"sort": sort, **filters})
            found += page.rows
            assert len(page.rows) <= limit
            cursor = page.cursor
            if cursor is None:
                break
        assert [r.content_id for r in found] == wanted


def test_pages_stay_in_place_while_contents_are_added(world: World) -> None:
    """A cursor means a place in the order, not a number of rows."""
    first = world.host.query("catalogue", limit=10)
    world.add(at(published(50), "did:a", 60))
    second = world.host.query("catalogue", limit=10, cursor=first.cursor)
    assert [getattr(r, "content_id", None) for r in second.rows] == [content(i).hex() for i in range(29, 19, -1)]


def test_states_follow_what_this_node_has(world: World) -> None:
    """Available with the bytes, pending without; a carried ballot is forgetting here until erased here."""
    assert world.numbers(state="available") == list(range(38, -1, -2))
    assert world.numbers(state="pending") == list(range(39, 0, -2))
    world.add(at(proposed(1, [4], ["did:a"]), "did:a", 60), at(proposed(2, [6], ["did:a", "did:b"]), "did:a", 61))
    assert world.numbers(state="forgetting") == [6, 4]
    assert world.numbers(state="forgotten") == []
    world.vault.erase(4)
    world.host.forget([content(4)])
    assert world.numbers(state="forgotten") == [4]
    assert world.numbers(state="forgetting") == [6]
    row = next(r for r in world.rows() if r.content_id == content(4).hex())
    assert (row.state, row.name, row.size, row.media_type, row.labels) == ("forgotten", None, None, None, None)
    assert (row.author, row.padded_size) == ("did:a", 1040)
    assert 4 not in world.numbers(state="available")


@pytest.mark.parametrize("follows", [True, False])
def test_states_agree_with_what_each_row_says(tmp_path: Path, *, follows: bool) -> None:
    """Whatever comes, goes and is erased here, before or after it is known: every state lists the rows that say so."""
    rng, log, vault = random.Random(8), MemoryLog(), Vault()
    vault.follows, seen = follows, set[str]()
    log.add([at(founded(), "did:a", 1)])
    with hosting(tmp_path, log, vault=vault) as host:
        for number in range(60):
            expires = 5_000 + number if number % 9 == 0 else None
            log.add([at(published(number, expires_ms=expires, size=rng.randrange(9000)), "did:a", 2 + number)])
            old = rng.randrange(number + 1)
            event = rng.choice([ev.ContentRetracted(content_id=content(old)), proposed(number, [old], ["did:a"]), None])
            if event is not None:
                log.add([at(event, "did:a", 100 + number)])
            if rng.random() < 0.2:
                log.add([at(proposed(number, [old], ["did:a", "did:b"]), "did:a", 100 + number, salt=1)])
            for _ in range(3):
                act = rng.choice([lambda n: vault.has(n, f"name {n}"), vault.drop, vault.erase])
                if (chosen := rng.randrange(number + 3)) not in {n for n in range(70) if content(n) in vault.gone}:
                    act(chosen)
            vault.now += 100
            host.catch_up()
            if number % 20 == 7:
                host.rebuild("catalogue")
            for sort in ("-order", "size", "-time"):
                rows: list[Any] = list(host.query("catalogue", filters={"state": "all", "sort": sort}).rows)
                seen |= {row.state for row in rows}
                for state in ("available", "pending", "forgetting", "forgotten", "retracted"):
                    asked = {"state": state, "sort": sort} | ({"author": "did:a"} if number % 2 else {})
                    found: list[Any] = list(host.query("catalogue", filters=asked).rows)
                    assert found == [row for row in rows if row.state == state], asked
    assert len(seen) == 5


def test_states_can_be_asked_on_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what came and went cannot be noted, every row is looked at; later it is noted again."""
    store = world.host._store

    def full() -> Any:
        raise StorageFullError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(store, "transaction", full)
        world.vault.drop(4)
        world.vault.has(5, "came")
        world.vault.erase(6)
        gone, here = {4, 6}, {*range(0, 40, 2), 5}
        assert world.numbers(state="available", sort="order") == sorted(here - gone)
        assert world.numbers(state="forgotten", sort="size") == [6]
        assert 4 in world.numbers(state="pending")
        assert world.numbers(state="forgetting") == []
    assert world.numbers(state="available", sort="order") == sorted(here - gone)


def test_a_state_that_nothing_is_in_costs_no_look_at_the_others(world: World) -> None:
    """No descriptor is opened for rows that another state rules out."""
    world.vault.follows = True
    for number in range(1, 40, 2):
        world.vault.has(number, "now here")
    world.vault.opened = 0
    assert world.numbers(state="pending") == world.numbers(state="forgotten", sort="size") == []
    assert world.vault.opened == 0


def test_retracted_contents_are_hidden_unless_asked_for(world: World) -> None:
    """They stay readable in `state=retracted` and `state=all`, and come back when restored."""
    world.add(at(ev.ContentRetracted(content_id=content(2)), "did:a", 60))
    assert 2 not in world.numbers()
    assert world.numbers(state="retracted") == [2]
    assert 2 in world.numbers(state="all")
    assert world.rows(state="retracted")[0].name == "Straße 2.txt"
    world.add(at(ev.ContentRestored(content_id=content(2)), "did:a", 61))
    assert 2 in world.numbers()


def test_expired_contents_are_forgotten_without_a_ballot(world: World) -> None:
    """When their time has come, by this node's clock, they show as on their way out, and gone once erased."""
    world.vault.has(50, "short-lived")
    world.add(at(published(50, expires_ms=T0 + 5), "did:a", 60))
    assert world.numbers(state="available")[0] == 50
    world.vault.now = T0 + 5
    assert world.numbers(state="forgetting") == [50]
    assert 50 not in world.numbers(state="available")
    world.vault.erase(50)
    assert world.numbers(state="forgotten") == [50]


def test_filters_narrow_down_and_combine(world: World) -> None:
    """Author, time, size, label, type, name and text; several must all fit."""
    assert world.numbers(author="did:b") == list(range(39, 0, -2))
    assert world.numbers(author="did:nobody") == []
    assert world.numbers(since=T0 + 40_000) == [39, 38]
    assert world.numbers(until="2023-11-14T22:13:24Z", since=T0) == [1, 0]
    assert world.numbers(label="tens-1") == [18, 16, 14, 12, 10]
    assert world.numbers(label="tens-1", author="did:b") == []
    assert world.numbers(media_type="image/*") == list(range(38, 18, -2))
    assert world.numbers(media_type="image/png", label="tens-3", sort="order") == [30, 32, 34, 36, 38]
    assert world.numbers(name="photo 20.png") == [20]
    assert world.numbers(text="STRASSE 1") == [18, 16, 14, 12, 10]
    assert world.numbers(text="photo tens-2", state="available") == [28, 26, 24, 22, 20]
    assert world.numbers(content_id=content(7).hex()) == [7]
    assert world.numbers(min_size=930, label="all") == [38, 36, 34, 32, 30]
    assert world.numbers(max_size=904) == [4, 2, 0]  # the odd ones are not here, so only their padded size is known
    assert world.numbers(min_size=1390) == [39]


def test_search_forgets_with_the_content(world: World) -> None:
    """Once erased, neither name nor label finds a content, although it was found before."""
    assert world.numbers(text="straße 12") == [12]
    world.add(at(proposed(1, [12], ["did:a"]), "did:a", 60))
    world.vault.erase(12)
    world.host.forget([content(12)])
    assert world.numbers(text="straße 12") == []
    assert world.numbers(name="Straße 12.txt") == []
    assert 12 not in world.numbers(label="tens-1")


def test_a_key_that_arrives_later_opens_the_name(world: World) -> None:
    """A search tries again what could not be opened before."""
    assert world.numbers(text="late") == []
    world.vault.has(7, "late name")
    assert world.numbers(text="late") == [7]


def test_a_revision_names_its_original(world: World) -> None:
    """Rows tell what revises what; `revises` lists the revisions; `current` hides superseded versions."""
    world.vault.has(50, "second")
    world.add(at(published(50, revises=2), "did:a", 60))
    row = world.rows(content_id=content(50).hex())[0]
    assert (row.revises, row.current, row.name) == (content(2).hex(), True, "second")
    assert world.numbers(revises=content(2).hex()) == [50]
    assert world.rows(content_id=content(2).hex())[0].revisions == 1
    assert 2 not in world.numbers(current=True)
    world.add(at(published(51, revises=2), "did:a", 61, device="did:a/2"))
    world.add(at(published(52, revises=2), "did:a", 61, device="did:a/1"))
    assert sorted(world.numbers(conflict=True)) == [51, 52]
    assert world.numbers(current=False) == [50, 2]


def test_ballots_can_be_filtered(world: World) -> None:
    """By state, by content, by proposer and by whom they wait for."""
    world.add(at(proposed(1, [4], ["did:a"]), "did:a", 60), at(proposed(2, [5, 6], ["did:a", "did:b"]), "did:b", 61))
    assert [r.ballot_id for r in world.rows("ballots")] == [ballot(2).hex(), ballot(1).hex()]
    assert [r.ballot_id for r in world.rows("ballots", state="carried")] == [ballot(1).hex()]
    assert [r.ballot_id for r in world.rows("ballots", content_id=content(6).hex())] == [ballot(2).hex()]
    assert [r.ballot_id for r in world.rows("ballots", waiting="did:a")] == [ballot(2).hex()]
    assert world.rows("ballots", waiting="did:b") == []
    assert world.rows("ballots", ballot_id=ballot(2).hex())[0].proposer == "did:b"
    assert world.rows("ballots", proposer="did:b")[0].reason is None  # the first content's key is not here
    world.add(at(proposed(3, [6], ["did:a", "did:b"]), "did:b", 62))
    assert world.rows("ballots", proposer="did:b")[0].reason == "because"


def test_a_reason_goes_with_the_content_that_it_is_sealed_under(world: World) -> None:
    """Not when another content of the ballot is erased; and a rebuild changes nothing about it."""
    world.add(
        at(proposed(1, [4, 6], ["did:a", "did:b"]), "did:a", 60),
        at(proposed(2, [6, 4], ["did:a", "did:b"]), "did:a", 61),
        at(ev.ForgettingRefused(ballot_id=ballot(1)), "did:b", 62),
        at(ev.ForgettingRefused(ballot_id=ballot(2)), "did:b", 63),
    )
    world.vault.erase(6)
    world.host.forget([content(6)])
    for _ in range(2):
        assert [r.reason for r in world.rows("ballots", sort="order")] == ["because", None]
        world.host.rebuild("ballots")


def test_the_timeline_lists_every_event(world: World) -> None:
    """One row for each event in the shared order, found by content, ballot, author, type and time."""
    world.add(at(proposed(1, [4, 5], ["did:a"]), "did:a", 60))
    last = world.rows("timeline")[0]
    assert (last.type, last.ballot_id) == ("forgetting-proposed/1", ballot(1).hex())
    assert last.contents == (content(4).hex(), content(5).hex())
    assert len(world.rows("timeline")) == 42
    assert [r.type for r in world.rows("timeline", content_id=content(5).hex(), sort="order")] == [
        "content-published/1",
        "forgetting-proposed/1",
    ]
    assert world.rows("timeline", ballot_id=ballot(1).hex()) == [last]
    assert len(world.rows("timeline", author="did:b")) == 20
    assert world.rows("timeline", type="vault-founded/1")[0].member == "did:a"
    assert len(world.rows("timeline", since=T0 + 40_000, until=T0 + 41_000)) == 1


@pytest.mark.parametrize(
    ("view", "filters", "message"),
    [
        ("catalogue", {"colour": "red"}, "no filter 'colour'; it has: author"),
        ("catalogue", {"state": "open"}, "state is one of available"),
        ("catalogue", {"sort": "name"}, "sort is one of"),
        ("catalogue", {"author": 5}, "filter author takes a text"),
        ("catalogue", {"author": ""}, "filter author takes a text"),
        ("catalogue", {"content_id": "zz"}, "filter content_id takes an id"),
        ("catalogue", {"since": "yesterday"}, "filter since takes a time"),
        ("catalogue", {"min_size": -1}, "filter min_size takes a whole number"),
        ("catalogue", {"current": "maybe"}, "filter current takes true or false"),
        ("ballots", {"state": "available"}, "state is one of open"),
        ("ballots", {"ballot_id": 7}, "filter ballot_id takes an id"),
        ("timeline", {"type": "nothing/1"}, "type is one of"),
        ("members", {"label": "x"}, "no filter 'label'"),
        ("holders", {"sort": "order"}, "no filter 'sort'"),
    ],
)
def test_bad_filters_are_refused(world: World, view: str, filters: dict[str, Any], message: str) -> None:
    """Each gets a sentence that says what would do."""
    with pytest.raises(MisuseError, match=message):
        world.host.query(view, filters=filters)


@pytest.mark.parametrize("cursor", ["", "x", "!!!", "gA", "k6ljYXRhbG9ndWWmLW9yZGVykQA", "a" * 600, 5, "é"])
def test_bad_cursors_are_refused(world: World, cursor: Any) -> None:
    """Text that is no cursor is an error of ours, whatever it is."""
    for view in ("catalogue", "ballots", "holders"):
        with pytest.raises(MisuseError, match="cursor"):
            world.host.query(view, cursor=cursor)


def test_a_cursor_of_another_query_is_refused(world: World) -> None:
    """A cursor belongs to its view and sort."""
    cursor = world.host.query("catalogue", limit=1).cursor
    with pytest.raises(MisuseError, match="belongs to view 'catalogue'"):
        world.host.query("timeline", cursor=cursor)
    with pytest.raises(MisuseError, match="sorted by"):
        world.host.query("catalogue", cursor=cursor, filters={"sort": "size"})


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "10", 10**9])
def test_bad_limits_are_refused(world: World, limit: Any) -> None:
    """A limit is a number from 1 on, or None."""
    for view in ("catalogue", "timeline", "holders"):
        with pytest.raises(MisuseError, match="limit is a whole number"):
            world.host.query(view, limit=limit)


def test_filters_of_none_do_not_filter(world: World) -> None:
    """Callers may pass every filter that they know."""
    assert len(world.rows(author=None, label=None)) == 40


def test_search_in_a_catalogue_beyond_memory(world: World) -> None:
    """Filters on sealed fields give the same rows when memory holds only some."""
    wanted = world.numbers(label="tens-3")
    query = world.host.live("catalogue").view.query  # type: ignore[attr-defined]
    query.search = Search(world.vault.local().unseal, capacity=3)
    assert world.numbers(label="tens-3") == wanted == [38, 36, 34, 32, 30]


def test_the_audit_is_asked_where_the_log_keeps_it() -> None:
    """Pages and filters go to the log's own records; unknown ones are refused."""
    rows = [AuditRow(number=i, verdict="accepted" if i % 2 else "refused", author="did:a") for i in range(1, 6)]
    asked: list[tuple[int, int, dict[str, Any]]] = []

    def fetch(after: int, most: int, filters: dict[str, Any]) -> list[AuditRow]:
        asked.append((after, most, filters))
        return [r for r in rows if r.number > after][:most]

    view = AuditView(fetch)
    first = view.page(Request(limit=3, filters={"verdict": "refused"}))
    assert [r.number for r in first.rows if isinstance(r, AuditRow)] == [1, 2, 3]
    second = view.page(Request(limit=3, cursor=first.cursor))
    assert [r.number for r in second.rows if isinstance(r, AuditRow)] == [4, 5]
    assert second.cursor is None
    assert asked == [(0, 4, {"verdict": "refused"}), (3, 4, {})]
    for filters in ({"colour": "red"}, {"verdict": "good"}):
        with pytest.raises(MisuseError):
            view.page(Request(filters=filters))
