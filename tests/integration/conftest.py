"""What tests of the command line begin with: a vault that the command line itself founded and serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import run, serving


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a vault whose node is running, one for each module."""
    place = tmp_path_factory.mktemp("cli") / "home"
    run(place, "init", "--name", "test")
    with serving(place):
        yield place
