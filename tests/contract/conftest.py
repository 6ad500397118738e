"""What most tests of the bus begin with: a bus in front of a vault in memory, and a client of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus_world import World
from walytis_vault.client import Client


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """One home with a bus; it ends with the test."""
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["threads", "asyncio"])
def client(world: World, request: pytest.FixtureRequest) -> Client:
    """A client of each kind: one contract holds both."""
    return world.client() if request.param == "threads" else world.sync()
