"""Search over what is sealed: the same rows whichever way they are found, and nothing left of what is forgotten."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.memory_log import MemoryLog
from support.view_world import Vault, at, content, founded, hosting, proposed, published
from walytis_vault.domain import events as ev
from walytis_vault.projections import catalogue_query, grams, search
from walytis_vault.projections.catalogue_query import CatalogueRow
from walytis_vault.projections.grams import Grams
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.wanted import Opened, Wanted

COUNT = 120
WORDS = ("Report", "straße", "x", "ab", "日本", "Quartal", "port", "notes", "é")
TEXTS = ("report", "PORT", "stras", "x", "a", "b n1", "日", "é", "tes port", "1", "zzz", "\t")
SORTS = ("-order", "order", "-time", "time", "-size", "size")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProjectionHost, Vault]]:
    rng, log, vault = random.Random(5), MemoryLog(), Vault()
    log.add([at(founded(), "did:a", 1)])
    for number in range(COUNT):
        revises = number - 7 if number % 11 == 0 and number > 20 else None
        event = published(number, revises=revises, size=(900 + number) * 21 // 20)
        log.add([at(event, f"did:{'ab'[number // 2 % 2]}", rng.randrange(2, 60), salt=number)])
        if number % 9:
            name = " ".join(rng.sample(WORDS, 2)) + f" {number}"
            kind = rng.choice(["text/plain", "image/png", "image/jpeg"])
            vault.has(number, name, media_type=kind, labels=rng.sample(["red", "Green", f"n{number % 40}"], 2))
    log.add([at(ev.ContentRetracted(content_id=content(n)), f"did:{'ab'[n // 2 % 2]}", 90) for n in (4, 50, 51)])
    log.add([at(proposed(1, [5, 60], ["did:a"]), "did:a", 91)])
    with hosting(tmp_path_factory.mktemp("views"), log, vault=vault) as host:
        host.catch_up()
        yield host, vault


def brute_force(rows: list[CatalogueRow], filters: dict[str, Any]) -> list[str]:
    """The ids of the rows that fit, by looking at each; `rows` are all, in the wanted order."""
    given = {k: v for k, v in filters.items() if k in ("name", "media_type", "label", "text")}
    found = []
    for row in rows:
        opened = None
        if row.size is not None:
            text = "\n".join(t for t in (row.name, *(row.labels or ())) if t).casefold()
            opened = Opened(row.name, row.media_type, row.labels or (), row.size, text)
        size = row.padded_size if row.size is None else row.size
        fits = (
            Wanted(**given).matches(opened)
            and (filters["state"] in ("all", row.state) if "state" in filters else row.state != "retracted")
            and row.author == filters.get("author", row.author)
            and (row.revises == filters["revises"] if "revises" in filters else True)
            and row.current == filters.get("current", row.current)
            and filters.get("min_size", 0) <= size <= filters.get("max_size", 10**9)
        )
        if fits:
            found.append(row.content_id)
    return found


def some_filters(rng: random.Random) -> dict[str, Any]:
    """Some filters, among them at least one on what is sealed."""
    asked: dict[str, Any] = {}
    if rng.random() < 0.6:
        asked["text"] = rng.choice(TEXTS)
    if rng.random() < 0.4:
        asked["label"] = rng.choice(["red", "Green", "n3", "green"])
    if rng.random() < 0.3:
        asked["media_type"] = rng.choice(["image/*", "image/png", "video/*"])
    if not asked:
        asked["name"] = "Report x 5"
    others: dict[str, Any] = {
        "author": rng.choice(["did:a", "did:b", "did:nobody"]),
        "state": rng.choice(["all", "available", "pending", "forgetting", "retracted"]),
        "current": rng.random() < 0.7,
        "min_size": rng.choice([0, 950, 1100]),
        "max_size": rng.choice([1000, 10_000]),
        "revises": content(15).hex(),
    }
    for name, value in others.items():
        if rng.random() < 0.2:
            asked[name] = value
    return asked


@pytest.mark.parametrize(("few", "stride", "many", "chunk"), [(2000, 2000, 20_000, 256), (3, 7, 10, 5), (0, 1, 0, 1)])
def test_every_way_of_searching_finds_the_same(
    world: tuple[ProjectionHost, Vault],
    monkeypatch: pytest.MonkeyPatch,
    *,
    few: int,
    stride: int,
    many: int,
    chunk: int,
) -> None:
    """Sorted, walked or looked up, in pages or at once: the rows that looking at each one gives, in that order."""
    host, _ = world
    monkeypatch.setattr(search, "FEW", few)
    monkeypatch.setattr(search, "STRIDE", stride)
    monkeypatch.setattr(grams, "MANY", many)
    monkeypatch.setattr(catalogue_query, "CHUNK", chunk)
    rng, hits = random.Random(few), 0
    for _ in range(25):
        asked, sort = some_filters(rng), rng.choice(SORTS)
        everything: Any = host.query("catalogue", limit=None, filters={"state": "all", "sort": sort}).rows
        expected = brute_force(list(everything), asked)
        found: list[str] = []
        cursor = None
        while True:
            page: Any = host.query(
                "catalogue", limit=rng.choice([1, 4, 50]), cursor=cursor, filters=asked | {"sort": sort}
            )
            found += [row.content_id for row in page.rows]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == expected, (asked, sort)
        hits += len(found)
    assert hits > 40


def test_nothing_of_a_forgotten_content_stays_in_memory(tmp_path: Path) -> None:
    """Neither its name, nor a label, nor three characters of them, in any index."""
    log, vault = MemoryLog(), Vault()
    log.add([at(founded(), "did:a", 1), *(at(published(n), "did:a", n + 2) for n in range(3))])
    vault.has(0, "plain report", labels=["blue"])
    vault.has(1, "Xylophone", media_type="audio/wav", labels=["vermilion"])
    vault.has(2, "other report", labels=["blue"])
    with hosting(tmp_path, log, vault=vault) as host:
        host.catch_up()
        for asked in ({"text": "xylo"}, {"text": "x"}, {"label": "vermilion"}, {"text": "o", "sort": "-size"}):
            assert host.query("catalogue", filters=asked).rows
        memory = host.live("catalogue").view.query.search  # type: ignore[attr-defined]
        held = repr(vars(memory)) + repr(memory._grams._numbers)
        assert all(trace in held for trace in ("Xylophone", "vermilion", "audio/wav", "'xyl'", "'mil'"))
        vault.erase(1)
        host.forget([content(1)])
        held = repr(vars(memory)) + repr(memory._grams._numbers)
        assert "report" in held
        assert not [trace for trace in ("Xylophone", "vermilion", "audio", "xyl", "mil", "one\\n") if trace in held]
        assert not host.query("catalogue", filters={"text": "xylo"}).rows
        assert len(host.query("catalogue", filters={"text": "report"}).rows) == 2


def test_a_doubled_id_is_found_by_the_name_that_counts(tmp_path: Path) -> None:
    """When an earlier publication takes over an id, its place and descriptor do, in the search as well."""
    log, vault = MemoryLog(), Vault()
    log.add([at(founded(), "did:a", 1), at(published(1, size=500), "did:a", 9)])
    vault.has(1, "late name")
    with hosting(tmp_path, log, vault=vault) as host:
        host.catch_up()
        assert host.query("catalogue", filters={"text": "late"}).rows
        log.add([at(published(1, size=900), "did:b", 3)])
        host.catch_up()
        vault.has(1, "early name")
        assert not host.query("catalogue", filters={"text": "late"}).rows
        (row,) = host.query("catalogue", filters={"text": "early", "sort": "-size"}).rows
        assert row.author == "did:b"  # type: ignore[attr-defined]


def test_every_key_that_arrived_is_tried_and_no_other(tmp_path: Path) -> None:
    """After a first search of contents that were not here, the next one finds all that came, however many."""
    count, log, vault = 2500, MemoryLog(), Vault()
    log.add([at(founded(), "did:a", 1), *(at(published(n), "did:a", n + 2) for n in range(count))])
    for vault.follows in (True, False):
        vault.keys.clear()
        (folder := tmp_path / str(vault.follows)).mkdir()
        with hosting(folder, log, vault=vault) as host:
            host.catch_up()
            assert not host.query("catalogue", filters={"text": "late"}).rows
            for number in range(0, count, 2):
                vault.has(number, "late name")
            vault.opened = 0
            assert len(host.query("catalogue", limit=None, filters={"text": "late"}).rows) == count // 2
            assert vault.opened == (count // 2 if vault.follows else count)
            vault.opened = 0
            assert host.query("catalogue", filters={"text": "late"}).rows
            assert vault.opened == (0 if vault.follows else count // 2)


def test_grams_tell_candidates_and_let_go() -> None:
    """Words of any length are found by parts; a text that is removed leaves no entry."""
    index = Grams()
    texts = {1: "alpha beta", 2: "beta gamma", 3: "x", 4: "ab"}
    for number, text in texts.items():
        index.add(number, text)
    assert list(index.candidates(["eta"]) or ()) == [1, 2]
    assert list(index.candidates(["eta", "gamm"]) or ()) == [2]
    assert list(index.candidates(["x"]) or ()) == [3]
    assert list(index.candidates(["ab"]) or ()) == [4]
    assert list(index.candidates(["omega"]) or ()) == []
    for number, text in texts.items():
        index.remove(number, text)
    index.remove(9, "never added")
    assert index._numbers == {}


def place(position: int) -> search.Place:
    return search.Place(position.to_bytes(4, "big"), 1000 * position, 100 - position, position)


def test_a_full_search_memory_still_answers() -> None:
    """Beyond its capacity the search says that it cannot tell, and opens descriptors again."""
    opened = Opened("name", "text/plain", ("label",), 5, "name\nlabel")
    index = search.Search(lambda _id, _sealed: opened, capacity=2)
    stored = [(place(i), content(i), b"sealed") for i in range(1, 5)]
    index.catch_up(lambda after: [s for s in stored if s[0].position > after], lambda _position: b"sealed")
    assert index.full
    assert index.find(Wanted(label="label"), "order") is None
    found = index.open(content(4), b"sealed", place(4))
    assert found is not None
    assert Wanted(label="label", text="NAME").matches(found)
    index.forget([content(1)])
    assert index.open(content(1), None, place(1)) is None


def test_what_is_forgotten_while_it_is_opened_is_not_kept() -> None:
    """A name that was opened just before the key was destroyed does not stay in memory."""
    keys = {content(1): Opened("name", None, (), 5, "name")}

    def unseal(content_id: bytes, _sealed: bytes) -> Opened | None:
        found = keys.pop(content_id, None)
        index.forget([content_id])  # the erasure runs between opening and keeping
        return found

    index = search.Search(unseal)
    assert index.open(content(1), b"sealed", place(1)) is None
    assert list(index.find(Wanted(name="name"), "order") or ()) == []
