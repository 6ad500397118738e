"""From a real store of walytis_offchain 0.5.4 into a real vault: every readable block, once, with its claims.

The store is made by the package itself (the extra `dev` installs it), in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.command_line import refused, run
from walytis_vault import Client, Node

CONTENTS = ("first letter", "second letter, longer " * 3000, "third")


def make_store(home: Path) -> list[dict[str, Any]]:
    """A real store with a block for each content; what upstream says about each."""
    done = subprocess.run(
        [sys.executable, "-m", "support.offchain_writer", str(home), *CONTENTS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        timeout=180,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
def test_a_real_store_is_imported_once(tmp_path: Path) -> None:
    """All contents with author and time as claims; again: nothing doubled; forgotten: not brought back."""
    old, home = tmp_path / "old", tmp_path / "home"
    blocks = make_store(old)
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}
    key = ("--key", str(old / "key.json"))
    with Node.create(home), Client(home) as client:

        def imported(*words: str) -> list[dict[str, Any]]:
            out = run(home, "import-offchain", str(old), *key, *words, "--json").stdout
            return [json.loads(line) for line in out.splitlines()]

        assert [b["outcome"] for b in imported("--dry-run")] == ["would import"] * 3
        assert client.query("catalogue") == []
        done = imported()
        assert [b["outcome"] for b in done] == ["imported"] * 3
        for block, result, content in zip(blocks, done, CONTENTS, strict=True):
            assert client.request(result["content_id"]) == content.encode()
            (row,) = client.query("catalogue", content_id=result["content_id"])
            number = CONTENTS.index(content)
            time = block["time"].replace(" ", "T")[:23] + "Z"
            assert list(row.labels[:2]) == ["walytis-offchain", f"walytis-offchain {block['block']}"]
            assert list(row.labels[2:]) == [f"author {block['author']}", f"time {time}", f"topic {number}"]
        assert [b["outcome"] for b in imported()] == ["there"] * 3
        assert len(client.query("catalogue", limit=None)) == 3
        client.forget(done[0]["content_id"])
        assert [b["outcome"] for b in imported()] == ["there"] * 3
        assert [r.state for r in client.query("catalogue", content_id=done[0]["content_id"])] == ["forgotten"]
        out = run(home, "import-offchain", str(old), *key).stdout.decode()
        assert out == "3 there\n"
        assert {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} == before

        # A block whose bytes are damaged is told, and the rest comes all the same; without block files, no authors.
        (database,) = old.rglob("BlockContent.db")
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE BlockContent SET content = zeroblob(10) WHERE rowid = 2")
        shutil.rmtree(old / "vault")
        with Node.create(tmp_path / "second"), Client(tmp_path / "second") as other:
            words = ("import-offchain", str(old), *key, "--json")
            again = [json.loads(line) for line in run(tmp_path / "second", *words).stdout.splitlines()]
            assert [b["outcome"] for b in again] == ["imported", "unreadable", "imported"]
            assert [b["author"] for b in again] == [None, None, None]
            assert len(other.query("catalogue")) == 2
        wrong = tmp_path / "wrong.json"
        wrong.write_text("{}")
        assert "does not open" in refused(home, "import-offchain", str(old), "--key", str(wrong))
        assert "0 files named BlockContent.db" in refused(home, "import-offchain", str(tmp_path / "home" / "bus"), *key)
