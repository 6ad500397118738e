"""Where the views of a vault are kept: in the home's own SQLite file, or in a PostgreSQL database named by a URL.

The place is remembered in vault.json without any password: libpq finds that in PGPASSWORD or `.pgpass`. Views hold
nothing that the log could not give again, so moving them is building them anew. See docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from walytis_vault.adapters.storage.postgres_place import schema_of, without_password
from walytis_vault.adapters.storage.view_store import SqliteViewStore
from walytis_vault.domain.errors import MisuseError
from walytis_vault.home import Home, VaultConfig
from walytis_vault.projections.store import ViewStore

SQLITE: Final = "sqlite"


def check_place(place: str | None) -> str:
    """A place as it is remembered: `sqlite`, or a URL without its password. Raises MisuseError."""
    return SQLITE if place is None or place == SQLITE else without_password(place)


def probe(place: str | None) -> str:
    """Make sure that a place can be reached, before a vault is made. Returns it as it is remembered.

    Raises:
        MisuseError: no such place, or what it needs is not installed.
        StorageUnavailableError, StorageError: the server does not answer, or cannot keep views.
    """
    remembered = check_place(place)
    if place is not None and remembered != SQLITE:
        with _psycopg_wanted():
            from walytis_vault.adapters.storage.postgres_server import connect
        connect(place, "public", writing=False).close()
    return remembered


def open_views(home: Home, config: VaultConfig, given: str | None) -> ViewStore:
    """Open the store of the views.

    Args:
        given: the place when it is not the remembered one; may hold a password, for this run.
    Raises:
        As `probe`.
    """
    place = given or config.views
    if check_place(place) == SQLITE:
        return SqliteViewStore(home.view_database)
    with _psycopg_wanted():
        from walytis_vault.adapters.storage.postgres_views import PostgresViewStore
    return PostgresViewStore(place, schema_of(config.vault_id, config.device))


def remember(home: Home, config: VaultConfig, given: str | None) -> None:
    """The views run at the given place now: find them there at the next start. Raises StorageError."""
    place = check_place(given or config.views)
    if place == config.views:
        return
    home.remember_views(config, place)
    if config.views == SQLITE:
        home.remove_views()


@contextmanager
def _psycopg_wanted() -> Iterator[None]:
    """The library for PostgreSQL is an extra: say so where it is missing."""
    try:
        yield
    except ImportError as e:
        raise MisuseError("views in PostgreSQL need the library psycopg: pip install 'walytis-vault[postgres]'") from e
