"""Keep an SQLite table of one's own, each event exactly once: `python examples/own_table.py FILE.db [--home DIR]`.

Counts what each author published. The position of the last event is stored in the same transaction as what the
event changed, so the program may be killed at any moment: the next start goes on right after it.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from walytis_vault.client import Client
from walytis_vault.domain.errors import VaultError

SCHEMA = """
CREATE TABLE IF NOT EXISTS published (author TEXT PRIMARY KEY, contents INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS place (one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL);
INSERT OR IGNORE INTO place VALUES (1, 0);
"""


def follow(client: Client, path: Path) -> Iterator[int]:
    """Apply events; yields each position after it was committed."""
    table = sqlite3.connect(path, isolation_level=None)
    try:
        table.executescript(SCHEMA)
        position: int = table.execute("SELECT position FROM place").fetchone()[0]
        for change in client.subscribe("events", after=position):
            table.execute("BEGIN IMMEDIATE")
            if change.type.startswith("content-published/"):
                table.execute(
                    "INSERT INTO published VALUES (?, 1) ON CONFLICT (author) DO UPDATE SET contents = contents + 1",
                    (change.author,),
                )
            table.execute("UPDATE place SET position = ?", (change.position,))
            table.execute("COMMIT")
            yield change.position
    finally:
        table.close()


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--home", type=Path)
    args = parser.parse_args()
    with Client(args.home) as client:
        try:
            for position in follow(client, args.table):
                print(f"position {position}", flush=True)
        except VaultError as e:
            raise SystemExit(f"{e}") from e
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
