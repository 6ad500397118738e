"""The programs in examples/ do what they say, as processes of their own, over the bus."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus_world import World
from walytis_vault.bus.security import add_client

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "home")
    yield made
    made.close()


@contextlib.contextmanager
def example(name: str, *arguments: str) -> Iterator[Iterator[str]]:
    """Run an example; gives its lines. It is killed at the end, or after 30 seconds."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    guard = threading.Timer(30, process.kill)
    guard.start()
    assert process.stdout is not None
    try:
        yield (line.strip() for line in process.stdout)
    finally:
        guard.cancel()
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_watch_folder(world: World, tmp_path: Path) -> None:
    """Files that are dropped in are published, once, also when the watcher is killed and started again."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"first")
    arguments = (str(folder), "--home", str(world.home))
    with example("watch_folder.py", *arguments) as lines:
        first = next(lines)
        (folder / "b.bin").write_bytes(b"x" * 300_000)
        assert next(lines).startswith("b.bin: ")
    with example("watch_folder.py", *arguments) as lines:
        assert {next(lines), next(lines)} > {first}
    rows = world.client().query("catalogue")
    assert sorted((r.name, r.labels) for r in rows) == [("a.txt", ("dropped",)), ("b.bin", ("dropped",))]


def test_own_table(world: World, tmp_path: Path) -> None:
    """The consumer counts each publish exactly once over kills and restarts of itself and of the node."""
    table = tmp_path / "own.db"
    client = world.client()
    count = 0
    for _ in range(3):
        for _ in range(20):
            count = client.publish(b"x").position
        with example("own_table.py", str(table), "--home", str(world.home)) as lines:
            while next(lines) != f"position {count}":
                pass
            world.restart()
            count = client.publish(b"y").position
            assert next(lines) == f"position {count}"
    with contextlib.closing(sqlite3.connect(table)) as database:
        assert database.execute("SELECT contents FROM published").fetchall() == [(count,)]
        assert database.execute("SELECT position FROM place").fetchall() == [(count,)]


def test_web_hook(world: World) -> None:
    """Contents and the catalogue come over HTTP, and the vault's errors become states."""
    client = world.client()
    kept, gone = (client.publish(os.urandom(500_000), name="n").content_id for _ in range(2))
    client.forget(gone)
    add_client(world.home / "bus", "web", ["read"])
    with example("web_hook.py", "--port", "0", "--home", str(world.home), "--key", "web") as lines:
        base = next(lines)

        def get(path: str) -> tuple[int, bytes]:
            try:
                with urllib.request.urlopen(base + path, timeout=10) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as e:
                with e:
                    return e.code, e.read()

        assert get(kept) == (200, world.service.blobs[kept])
        assert [get(path)[0] for path in (gone, "0" * 32, "nonsense")] == [410, 404, 400]
        status, body = get("")
        assert status == 200
        assert kept.encode() in body
