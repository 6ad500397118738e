"""The same log gives the same rows and hashes in PostgreSQL as in SQLite: byte for byte, whatever stands in it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import MakeStore, schema_for
from support.memory_log import MemoryLog
from support.plugin_views import Authors
from support.postgres_server import PostgresServer
from support.view_world import MEMBERS, Vault, at, ballot, content, hosting, published, random_history
from walytis_vault.adapters.storage.postgres_views import PostgresViewStore
from walytis_vault.domain import events as ev
from walytis_vault.projections.base import Local, View, ViewRecorder
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.keyed import KeyedView
from walytis_vault.projections.plugins import OWN
from walytis_vault.projections.store import Connection, ViewStore

pytestmark = pytest.mark.postgres


class LastRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a member's publications come to."""

    member: str
    largest: int


class Largest(KeyedView):
    """A view of a stranger's on the simple base: the largest publication of each member."""

    name = "largest"
    row = LastRow

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.handlers = {ev.ContentPublished: self._published}

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        row = self.get(connection, origin.author) or LastRow(member=origin.author, largest=0)
        largest = max(row.largest, event.padded_length)
        self.put(connection, origin.author, LastRow(member=origin.author, largest=largest), position)


VIEWS: tuple[type[View], ...] = (*OWN, Authors, Largest)
ODD = (
    "did:nul\x00",
    "did:nul\x00b",
    "did:one\x01",
    "did:ä",
    "did:Z",
    "did:z'; DROP TABLE views; --",
    "did:?",
    "did:%s",
)
"""Members' names that a database could take amiss."""


@pytest.fixture
def make_postgres(postgres: PostgresServer) -> MakeStore:
    """Opens the PostgreSQL store of a folder."""

    def make(folder: Path) -> ViewStore:
        return PostgresViewStore(postgres.url(), schema_for(folder))

    return make


class Pair:
    """Two hosts over one log, the one on SQLite and the other on PostgreSQL."""

    def __init__(self, folder: Path, make: MakeStore, opened: ExitStack, batch: int) -> None:
        self.log, self.vault = MemoryLog(), Vault()
        self.hosts: list[ProjectionHost] = [
            opened.enter_context(hosting(folder, self.log, views=VIEWS, vault=self.vault, batch=batch)),
            opened.enter_context(
                hosting(folder, self.log, views=VIEWS, vault=self.vault, batch=batch, make_store=make)
            ),
        ]

    def add(self, history: list[ev.Recorded]) -> None:
        """Append and fold."""
        self.log.add(history)
        for host in self.hosts:
            assert host.catch_up() == self.log.horizon

    def agree(self) -> None:
        """Fail unless both say the same to everything."""
        one, other = self.hosts
        assert one.status() == other.status()
        for view, filters in questions():
            for limit in (None, 7):
                ours, theirs = ([*pages(host, view, limit, filters)] for host in (one, other))
                assert ours == theirs, (view, filters, limit)
        for view in (v.name for v in VIEWS):
            assert one.changes(view, after=0, limit=5000) == other.changes(view, after=0, limit=5000)


def pages(host: ProjectionHost, view: str, limit: int | None, filters: dict[str, Any]) -> Iterator[Any]:
    """The pages of an answer, at most 5."""
    cursor = None
    for _ in range(5):
        page = host.query(view, limit=limit, cursor=cursor, filters=filters)
        yield page
        cursor = page.cursor
        if cursor is None:
            return


def questions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every filter and sort of our views."""
    for state in ("all", "available", "pending", "forgetting", "forgotten", "retracted"):
        yield "catalogue", {"state": state}
    for sort in ("order", "-order", "time", "-time", "size", "-size"):
        yield "catalogue", {"sort": sort, "state": "all"}
    for member in (*MEMBERS, *ODD, "nobody"):
        yield "catalogue", {"author": member}
        yield "timeline", {"author": member}
        yield "ballots", {"proposer": member}
        yield "ballots", {"waiting": member}
        yield "members", {"did": member}
        yield "holders", {"device": f"{member}/1"}
    yield "catalogue", {"since": 2, "until": 10**12}
    yield "catalogue", {"since": 5, "sort": "-size"}
    yield "catalogue", {"min_size": 10, "max_size": 5000}
    yield "catalogue", {"text": "name 1"}
    yield "catalogue", {"label": "odd", "sort": "time"}
    yield "catalogue", {"current": True, "conflict": False}
    yield "catalogue", {"conflict": True}
    for number in range(4):
        yield "catalogue", {"content_id": content(number).hex()}
        yield "catalogue", {"revises": content(number).hex(), "state": "all"}
        yield "timeline", {"content_id": content(number).hex()}
        yield "timeline", {"ballot_id": ballot(number).hex(), "sort": "order"}
        yield "ballots", {"content_id": content(number).hex()}
        yield "holders", {"content_id": content(number).hex()}
    yield "timeline", {"type": "content-published/1"}
    yield "timeline", {"since": 3, "until": 10**13}
    for state in ("open", "carried", "refused", "withdrawn", "all"):
        yield "ballots", {"state": state, "sort": "order"}
    for state in ("member", "removed", "all"):
        yield "members", {"state": state}
    for state in ("published", "erased", "all"):
        yield "holders", {"state": state}
    yield "authors", {}
    yield "largest", {}


def odd_history() -> list[ev.Recorded]:
    """Publications and revisions by members with odd names, and expiry."""
    found = []
    for number, member in enumerate(ODD):
        found.append(at(published(100 + number, expires_ms=number or None, size=4000), member, 2 + number, salt=number))
        found.append(at(published(200 + number, revises=100 + number), member, 20 + number, salt=number))
        found.append(at(published(300 + number, revises=100 + number), member, 20, salt=50 + number))
        found.append(at(ev.ContentRetracted(content_id=content(100 + number)), member, 30, salt=number))
    return found


@pytest.mark.parametrize(
    ("seed", "length"), [(1, 60), *(pytest.param(n, 200, marks=pytest.mark.long) for n in (2, 3, 4, 5))]
)
def test_both_stores_say_the_same(tmp_path: Path, make_postgres: MakeStore, seed: int, length: int) -> None:
    """Random histories, in small and large batches: equal rows, pages, changes and hashes, also after a rebuild."""
    with ExitStack() as opened:
        pair = Pair(tmp_path, make_postgres, opened, batch=(3, 500)[seed % 2])
        for number in range(6):
            pair.vault.has(number, f"name {number}", labels=["odd"] if number % 2 else ["even"])
        history = random_history(seed, length)
        pair.add(history[: length // 2])
        first = {name: state.hash for name, state in pair.hosts[0].status().items()}
        pair.add(history[length // 2 :])
        pair.add(odd_history())
        assert {name: state.hash for name, state in pair.hosts[0].status().items()} != first
        pair.agree()
        pair.vault.erase(1)
        for host in pair.hosts:
            host.forget([content(1)])
            host.rebuild()
        pair.agree()


def test_a_store_that_was_closed_goes_on(tmp_path: Path, make_postgres: MakeStore) -> None:
    """A host that opens the schema again finds positions, rows and hashes, and folds what came meanwhile."""
    history = random_history(7, 60)
    log = MemoryLog()
    log.add(history[:30])
    with hosting(tmp_path, log, make_store=make_postgres) as host:
        host.catch_up()
        before = {name: state.hash for name, state in host.status().items()}
    with hosting(tmp_path, log, make_store=make_postgres) as host:
        assert host.position == 30
        assert {name: state.hash for name, state in host.status().items()} == before
        log.add(history[30:])
        host.catch_up()
        after = {name: state.hash for name, state in host.status().items()}
    with hosting(tmp_path / "fresh", log, make_store=make_postgres) as host:
        host.catch_up()
        assert {name: state.hash for name, state in host.status().items()} == after


@pytest.mark.parametrize("there", [1, 20, 64])
def test_rows_of_another_state_of_the_log_begin_anew(tmp_path: Path, make_store: MakeStore, there: int) -> None:
    """A restored backup has an older log than the views: they fold again, whatever the log has become since."""
    old, new = MemoryLog(), MemoryLog()
    history = random_history(9, 60)
    old.add(history)
    new.add([*history[:20], *reversed(history[20:])][:there])
    with hosting(tmp_path, old, make_store=make_store) as host:
        host.catch_up()
    (tmp_path / "fresh").mkdir()
    with hosting(tmp_path, new, make_store=make_store) as host, hosting(tmp_path / "fresh", new) as fresh:
        for one in (host, fresh):
            one.catch_up()
            assert one.position == there
        assert host.query("timeline", limit=None) == fresh.query("timeline", limit=None)
        assert host.status() == fresh.status()


def test_sealed_bytes_go_with_their_content(tmp_path: Path, make_postgres: MakeStore, postgres: PostgresServer) -> None:
    """After `forget` no row of any table holds the sealed descriptor."""
    sealed = secrets.token_bytes(40)
    publication = ev.ContentPublished(
        content_id=content(1),
        nonce=bytes(16),
        root=hashlib.sha256(b"").digest(),
        padded_length=1,
        header=bytes(56),
        descriptor=sealed,
    )
    log = MemoryLog()
    log.add([at(publication, "did:a", 2)])
    with hosting(tmp_path, log, make_store=make_postgres) as host:
        host.catch_up()
        find = f"SELECT count(*) FROM {schema_for(tmp_path)}.catalogue_1_sealed WHERE sealed = '\\x{sealed.hex()}'"
        assert postgres.run(find) == [(1,)]
        host.forget([content(1)])
        assert postgres.run(find) == [(0,)]
