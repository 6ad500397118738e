"""DIDs as small numbers inside a view, so that rows and indexes stay narrow. The numbers are this node's own."""

from __future__ import annotations

from typing import Final

from walytis_vault.projections.store import Connection, Table, one

TABLE: Final = Table(name="dids", columns={"id": "integer", "did": "text"}, primary_key=("id",), unique=(("did",),))


class Dids:
    """The table `dids` of one view, with a cache that forgets when a transaction is rolled back."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._ids: dict[str, int] = {}
        self._texts: dict[int, str] = {}

    def id(self, connection: Connection, did: str) -> int:
        """The number of a DID, a new one if need be. Inside a write transaction."""
        number = self._ids.get(did)
        if number is None:
            number = self.find(connection, did)
            if number is None:
                row = one(connection.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {self._table}"))
                number = int(row[0])
                connection.execute(f"INSERT INTO {self._table} (id, did) VALUES (?, ?)", (number, did))
            self._ids[did] = number
        return number

    def find(self, connection: Connection, did: str) -> int | None:
        """The number of a DID, None when the view never saw it."""
        row = one(connection.execute(f"SELECT id FROM {self._table} WHERE did = ?", (did,)))
        return None if row is None else int(row[0])

    def text(self, connection: Connection, number: int) -> str:
        """The DID of a number."""
        did = self._texts.get(number)
        if did is None:
            did = str(one(connection.execute(f"SELECT did FROM {self._table} WHERE id = ?", (number,)))[0])
            self._texts[number] = did
        return did

    def roll_back(self) -> None:
        """Forget what may not have been committed."""
        self._ids = {}
        self._texts = {}
