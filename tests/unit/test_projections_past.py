"""Views of the past: by position or time, page by page, with what is gone by now as gaps."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from support.memory_log import MemoryLog
from support.view_world import Vault, at, content, founded, hosting, proposed, published
from walytis_vault.adapters.storage.view_store import SqliteViewStore, TemporaryViewStore
from walytis_vault.domain.errors import MisuseError, StorageError
from walytis_vault.domain.events import Recorded
from walytis_vault.projections.base import Page
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.past import Past
from walytis_vault.projections.plugins import OWN
from walytis_vault.projections.replay import Replay

ASK: dict[str, Any] = {"limit": 1, "cursor": None, "filters": {}}


def history(length: int) -> list[Recorded]:
    return [at(published(n), "did:a", n + 2) for n in range(length)]


def test_the_past_can_be_asked_page_by_page(tmp_path: Path) -> None:
    """By position or time, with filters, sort and cursor; the live view and its answers are untouched."""
    log = MemoryLog()
    log.add([at(founded(), "did:a", 1), *history(6)])
    with hosting(tmp_path, log, batch=2) as host:
        host.catch_up()
        page = host.query_as_of("catalogue", 5, limit=3, filters={"sort": "order"})
        assert (len(page.rows), page.position) == (3, 5)
        rest = host.query_as_of("catalogue", "5", limit=3, cursor=page.cursor, filters={"sort": "order"})
        assert [c.position for c in (*page.rows, *rest.rows)] == [2, 3, 4, 5]  # type: ignore[attr-defined]
        moment = "2023-11-14T22:13:23Z"
        assert len(host.query_as_of("catalogue", moment).rows) == 2
        for view in host.folded:
            assert host.query_as_of(view, 1, filters={}).position == 1
        assert host.query_as_of("catalogue", 10**9).rows == host.query("catalogue").rows
        for wrong in ("yesterday", "", -1):
            with pytest.raises(MisuseError, match="as_of"):
                host.query_as_of("catalogue", wrong)


def test_pages_of_a_time_are_those_of_one_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While events arrive, also earlier ones, the pages that follow are of what was folded for the first."""
    log, folds = MemoryLog(), list[int]()
    log.add([at(founded(), "did:a", 1), *history(6)])
    replay = ProjectionHost.replay

    def counted(*args: Any, **named: Any) -> Replay:
        folds.append(1)
        return replay(*args, **named)

    monkeypatch.setattr(ProjectionHost, "replay", counted)
    with hosting(tmp_path, log) as host:
        host.catch_up()
        moment, found, cursor = "2023-11-14T22:13:26Z", list[Any](), None
        for number in range(5):
            page = host.query_as_of("catalogue", moment, limit=1, cursor=cursor, filters={"sort": "order"})
            found += page.rows
            cursor = page.cursor
            log.add([at(published(20 + number), "did:a", 2, salt=number)])
            host.catch_up()
        assert ([row.position for row in found], cursor) == ([2, 3, 4, 5, 6], None)
        assert len(folds) == 1
        for wrong in ("", "x", "9.", "99999.gA", "1." + str(host.query("catalogue", limit=1).cursor)[:5]):
            with pytest.raises(MisuseError, match="cursor"):
                host.query_as_of("catalogue", moment, cursor=wrong)


def test_what_is_gone_by_now_is_a_gap_in_the_past(tmp_path: Path) -> None:
    """Erased contents show as forgotten at a moment before their ballot; what has expired since had not then."""
    log, vault = MemoryLog(), Vault()
    log.add([at(founded(), "did:a", 1)])
    log.add([at(published(n, expires_ms=1_700_000_050_000 if n == 2 else None), "did:a", n + 2) for n in range(4)])
    log.add([at(proposed(0, [1], ["did:a"]), "did:a", 60)])
    for number in range(4):
        vault.has(number, f"name {number}")
    vault.now = 1_700_000_100_000
    with hosting(tmp_path, log, vault=vault) as host:
        host.catch_up()
        now = {row.name: row.state for row in host.query("catalogue").rows}  # type: ignore[attr-defined]
        assert now == {"name 0": "available", None: "forgetting", "name 2": "forgetting", "name 3": "available"}
        before = host.query_as_of("catalogue", 5)
        assert [row.state for row in before.rows] == ["available"] * 4  # type: ignore[attr-defined]
        vault.erase(1)
        host.forget([content(1)])
        gap = host.query_as_of("catalogue", 5, filters={"state": "forgotten"}).rows
        assert [(row.content_id, row.name, row.size) for row in gap] == [  # type: ignore[attr-defined]
            (content(1).hex(), None, None)
        ]
        assert not host.query_as_of("catalogue", 5, filters={"text": "name 1"}).rows
        assert host.query_as_of("catalogue", 5, filters={"text": "name 2"}).rows


def test_few_views_of_the_past_stay_open(tmp_path: Path) -> None:
    """Their temporary stores go when others are asked for, when something is forgotten, and at the end."""
    log, made = MemoryLog(), list[TemporaryViewStore]()
    log.add([at(founded(), "did:a", 1), *history(8)])

    def temporary() -> TemporaryViewStore:
        made.append(TemporaryViewStore())
        return made[-1]

    def there() -> int:
        return sum(Path(store._folder.name).exists() for store in made)

    store = SqliteViewStore(tmp_path / "views.db")
    host = ProjectionHost(log, log, store, OWN, temporary=temporary)
    host.catch_up()
    for position in (1, 2, 3, 4, 5, 6, 6, 5):
        host.query_as_of("catalogue", position)
    assert (len(made), there()) == (6, 4)
    host.forget([content(1)])
    assert there() == 0
    host.query_as_of("catalogue", 3)
    host.close()
    assert there() == 0
    with pytest.raises(StorageError):
        host.query_as_of("catalogue", 3)
    store.close()


class Folded:
    """Stands for a view of the past; `closed` is set when it is dropped."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.asked = threading.Semaphore(0)
        self.answer = threading.Event()
        self.answer.set()

    def query(self, **_asked: Any) -> Page:
        """Answer when told to."""
        self.asked.release()
        assert self.answer.wait(10)
        assert not self.closed.is_set()
        return Page(rows=())

    def close(self) -> None:
        """See `Replay.close`."""
        self.closed.set()


def test_views_of_the_past_go_when_nobody_asks_them_any_more() -> None:
    """After a while without a question; one that is being read is left alone until it was."""
    made: dict[str, Folded] = {"idle": Folded(), "busy": Folded()}
    past = Past(lambda view, _moment: cast(Replay, made[view]), idle_s=0.05)
    made["busy"].answer.clear()
    reading = threading.Thread(target=past.query, args=("busy", (1, None)), kwargs=ASK)
    reading.start()
    assert made["busy"].asked.acquire(timeout=10)
    past.query("idle", (1, None), **ASK)
    assert made["idle"].closed.wait(10)
    assert not made["busy"].closed.is_set()
    made["busy"].answer.set()
    reading.join(10)
    assert made["busy"].closed.wait(10)
    made["idle"] = Folded()
    past.query("idle", (1, None), **ASK)
    past.close()
    assert made["idle"].closed.is_set()
