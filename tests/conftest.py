"""Fixtures that several test files share: a PostgreSQL server, and a place for views on each kind of store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.postgres_server import PostgresServer, find_programs, running_server
from walytis_vault.adapters.storage.postgres_views import PostgresViewStore
from walytis_vault.adapters.storage.view_store import SqliteViewStore
from walytis_vault.projections.store import ViewStore

MakeStore = Callable[[Path], ViewStore]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that runs as long as the tests; tests leave it running."""
    if find_programs() is None and not os.environ.get("WALYTIS_VAULT_REQUIRE_POSTGRES"):
        pytest.skip("no PostgreSQL programs here (apt install postgresql): `make test-long` fails without them")
    yield from running_server()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def make_store(request: pytest.FixtureRequest) -> MakeStore:
    """Opens the view store that belongs to a folder, on each kind of store."""
    if request.param == "sqlite":
        return lambda folder: SqliteViewStore(folder / "views.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda folder: PostgresViewStore(server.url(), schema_for(folder))


def schema_for(folder: Path) -> str:
    """A schema of its own for each folder."""
    return "test_" + hashlib.sha256(str(folder).encode()).hexdigest()[:24]
