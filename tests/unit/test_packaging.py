"""The package list, links and versions agree with the disk: what works installed editable works from a wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("adapters", "bus", "domain", "projections")
FACE = ROOT / "src" / "walytis_vault"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _packages_below(folder: Path, name: str) -> set[str]:
    """Import names of `folder` and of every folder with Python files below it; links are not followed."""
    found = {name}
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink() and any(child.rglob("*.py")):
            found |= _packages_below(child, f"{name}.{child.name}")
    return found


def test_package_list_equals_the_disk(project: dict[str, Any]) -> None:
    """Every folder with Python code is in the package list, and nothing else is."""
    on_disk = _packages_below(FACE, "walytis_vault")
    for folder in LINKED:
        on_disk |= _packages_below(ROOT / folder, f"walytis_vault.{folder}")
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(on_disk)
    assert len(listed) == len(set(listed))


def test_every_package_has_an_init_file(project: dict[str, Any]) -> None:
    """Each package says in an `__init__.py` of its own what it is."""
    for name in project["tool"]["setuptools"]["packages"]:
        init = FACE.joinpath(*name.split(".")[1:], "__init__.py")
        assert init.is_file(), init
        assert init.read_text().lstrip().startswith('"""'), f"{init} has no docstring"


def test_links_lead_to_the_folders_at_the_top() -> None:
    """Each of the four folders is reachable under the import name by a relative link."""
    for folder in LINKED:
        link = FACE / folder
        assert link.is_symlink(), link
        assert link.readlink() == Path("../..") / folder
        assert link.resolve() == ROOT / folder


def test_the_mapping_names_the_same_folders(project: dict[str, Any]) -> None:
    """Builds use the mapping, tools use the links: both lead to the same place."""
    mapping = dict(project["tool"]["setuptools"]["package-dir"])
    assert mapping.pop("walytis_vault") == "src/walytis_vault"
    assert mapping == {f"walytis_vault.{folder}": folder for folder in LINKED}


def test_package_is_marked_as_typed(project: dict[str, Any]) -> None:
    """Programs that use the package get its types."""
    assert (FACE / "py.typed").is_file()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["walytis_vault"]


def test_walytis_packages_are_pinned_exactly(project: dict[str, Any]) -> None:
    """The one set of Walytis packages that works together is named version by version."""
    loose = [
        requirement
        for requirement in project["project"]["dependencies"]
        if requirement.startswith(("walytis", "brenthy", "ipfs", "multi_crypt")) and "==" not in requirement
    ]
    assert loose == []


def test_changelog_speaks_of_this_version(project: dict[str, Any]) -> None:
    """The changelog has a heading for the version that is being built."""
    assert f"## {project['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()
