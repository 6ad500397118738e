"""What is built is what was written: wheel and sdist hold every package, and what is installed works.

Built from a copy of the sources with the setuptools of this environment: no network, nothing left in the work tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("adapters", "bus", "domain", "projections", "src", "tests", "docs", "benchmarks", "examples")
FILES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile", "CHANGELOG.md", "SECURITY.md")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache", "build", "dist")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as a clone has them, links included."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=LEFT_OUT)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    return copy


def _build(sources: Path, kind: str, target: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(target), str(sources)],
        check=True,
        capture_output=True,
        timeout=90,
    )
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(sources, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(sources, "sdist", tmp_path_factory.mktemp("sdist"))


def _modules_of(sources: Path) -> set[str]:
    """Paths that the modules must have inside the wheel."""
    project = tomllib.loads((sources / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for package in project["packages"]:
        place = package.replace(".", "/")
        found |= {f"{place}/{file.name}" for file in (sources / "src" / place).glob("*.py")}
    return found


def test_wheel_holds_every_module(wheel: Path, sources: Path) -> None:
    """The wheel holds exactly the modules of all packages, and the marker of types."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == _modules_of(sources) | {"walytis_vault/py.typed"}


def test_wheel_declares_the_command_and_the_licence(wheel: Path) -> None:
    """The wheel brings the `walytis-vault` command and the licence's text."""
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    assert "walytis-vault = walytis_vault.cli:main" in archive.read(entry_points).decode()
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())


def test_wheel_runs_where_the_sources_are_not(wheel: Path, tmp_path: Path) -> None:
    """Unpacked alone, away from the sources, the command line answers."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        # -S keeps an editable install of the sources out; the dependencies are named by their folder.
        [sys.executable, "-S", "-c", "import runpy; runpy.run_module('walytis_vault', run_name='__main__')", "--help"],
        env={**clean, "PYTHONPATH": os.pathsep.join([str(tmp_path), _site_packages()])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "publish" in done.stdout


def _site_packages() -> str:
    import click

    return str(Path(click.__file__).parents[1])


def test_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """A wheel built from the sdist holds the same files as one built from a clone."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = _build(unpacked, "wheel", tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_sdist_brings_tests_and_documents(sdist: Path) -> None:
    """Whoever packages the project elsewhere finds its tests and documents in the sdist, and no caches."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "Makefile"} <= names
    assert "tests/integration/test_wheel.py" in names
    assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_pip_install_in_an_empty_environment_gives_a_working_command(sources: Path, tmp_path: Path) -> None:
    """`pip install .` in an empty virtual environment gives a command whose demo runs to its end."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", str(sources)], check=True, timeout=600)
    done = subprocess.run(
        [programs / "walytis-vault", "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
