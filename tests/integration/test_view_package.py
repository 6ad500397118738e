"""A view of a stranger's package, installed by pip and kept by a real node: examples/activity_view."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import command_line
from support.command_line import ENVIRONMENT, SOURCE, publish, run, run_process, serving
from support.documents import in_spans
from walytis_vault.client import Client
from walytis_vault.testing import ViewContract

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "activity_view"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, as pip installs it; without a network, with the setuptools of this environment."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / "source", ignore=LEFT_OUT)
    words = [
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
    ]
    subprocess.run(
        [sys.executable, "-m", *words, "--target", str(folder / "site"), str(folder / "source")],
        check=True,
        capture_output=True,
        timeout=100,
    )
    return folder / "site"


@pytest.fixture
def environment(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started see the package."""
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{SOURCE}{os.pathsep}{installed}")


@pytest.mark.long
def test_the_packages_own_tests_pass(installed: Path, environment: None, tmp_path: Path) -> None:
    """The contract tests that come with walytis-vault run in the author's package, with nothing of our tests."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PACKAGE / "tests")],
        env={**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    contract = sum(name.startswith("test_") for name in vars(ViewContract))
    passed = re.search(r"^(\d+) passed in ", done.stdout, re.MULTILINE)  # nothing failed, nothing skipped
    assert passed is not None, done.stdout[-3000:]
    assert int(passed[1]) >= contract > 0


def test_a_real_node_keeps_the_view(environment: None, tmp_path: Path) -> None:
    """It is queried, followed, replayed to a moment and rebuilt like our own, and goes when the package does."""
    home = tmp_path / "home"
    run_process(home, "init")
    with serving(home), Client(home) as client:
        publish(home, b"one")
        assert [row.contents for row in client.query("activity")] == [1]
        middle = client.status().position
        publish(home, b"two")
        (row,) = client.query("activity", member=client.status().did)
        assert row.contents == 2
        assert [r.contents for r in client.query("activity", as_of=middle)] == [1]
        changes = client.subscribe("activity", after=middle)
        change = changes.next(20)
        assert change is not None
        assert change.row is not None
        assert change.row["contents"] == 2
        assert client.replay("activity")["activity"]["equal"]
        assert "activity" in client.status().views
        for command in in_spans("docs/how-to-write-a-projection.md"):
            run(home, *shlex.split(command)[1:])
        table = run(home, "query", "activity", f"month={row.month}").stdout.decode().splitlines()
        assert table[0].split() == ["MEMBER", "MONTH", "CONTENTS", "PADDED_BYTES"]
        assert table[1].split()[1:3] == [row.month, "2"]
        before = client.status().views["activity"].hash
    with serving(home), Client(home) as client:
        assert client.status().views["activity"].hash == before
    ENVIRONMENT["PYTHONPATH"] = SOURCE
    with serving(home), Client(home) as client:
        assert "activity" not in client.status().views
        assert "no view 'activity'" in command_line.refused(home, "query", "activity")
