"""The references in docs/ say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import click
import pytest

from walytis_vault import Client
from walytis_vault.cli.app import application

DOCS = Path(__file__).resolve().parents[2] / "docs"


def maker() -> ModuleType:
    """The script that writes them."""
    found = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["reference-cli.md", "reference-python.md"])
def test_references_are_current(name: str) -> None:
    """Help texts, options and docstrings stand in the reference as they stand in the code."""
    made = maker().FILES[name]()
    assert made == (DOCS / name).read_text(), f"docs/{name} is out of date: run `make docs` and commit what it writes"


def test_nothing_is_left_out() -> None:
    """Every command and every verb has a section."""
    cli, python = ((DOCS / f"reference-{n}.md").read_text() for n in ("cli", "python"))
    for name, command in application().commands.items():
        if isinstance(command, click.Group):
            assert all(f"\n## {name} {inner}\n" in cli for inner in command.commands)
        else:
            assert f"\n## {name}\n" in cli
    verbs = [n for n, m in vars(Client).items() if callable(m) and not n.startswith("_")]
    assert [n for n in verbs if f"\n### Client.{n}\n" not in python] == []
