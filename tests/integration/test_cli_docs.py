"""What the documents show is true: each command in them is run, in order, on a real node.

Ids in the documents stand for the ids that the commands print: the first 32 hex digits of an expected output are
matched with the real one, and replaced in all later commands. Messages of errors must be the same word for word.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import ENVIRONMENT, STEP_SECONDS, serving
from support.documents import DOCUMENTS, PROGRAM, ROOT, blocks

ID = re.compile(r"\b[0-9a-f]{32}\b")
SESSIONS = [document for document in DOCUMENTS if any(blocks(document, "console"))]


def steps(document: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of the document's sessions with the output that is shown below it."""
    for block in blocks(document, "console"):
        first, *rest = block.split("\n")
        assert first.startswith("$ "), first
        command, shown = first[2:], list[str]()
        for line in rest:
            if line.startswith("$ "):
                yield command, shown
                command, shown = line[2:], []
            elif line:
                shown.append(line)
        yield command, shown


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which the program is found, and its home is a temporary folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / PROGRAM).write_text(f'#!/bin/sh\nexec {sys.executable} -P -m walytis_vault "$@"\n')
    (programs / PROGRAM).chmod(0o755)
    return {
        **ENVIRONMENT,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "WALYTIS_VAULT_HOME": str(tmp_path / "home"),
    }


@pytest.mark.timeout(300)  # dozens of processes, one after the other
@pytest.mark.parametrize("document", SESSIONS)
def test_sessions_in_the_documents_run(document: str, shell: dict[str, str], tmp_path: Path) -> None:
    """Every command of a document's session does what is shown below it."""
    (tmp_path / "letter.txt").write_text("Dear Ada, the engine works.\n" * 40)
    real: dict[str, str] = {}
    commands = list(steps(document))
    if f"{PROGRAM} serve" not in [command for command, _ in commands]:  # commands for a vault that there is
        commands = [(f"{PROGRAM} init", []), (f"{PROGRAM} serve", []), *commands]
    begin = next(i for i, (command, _) in enumerate(commands) if command == f"{PROGRAM} serve")
    for command, shown in commands[:begin]:
        _run(command, shown, shell, tmp_path, real)
    with serving(tmp_path / "home"):
        for command, shown in commands[begin + 1 :]:
            _run(command, shown, shell, tmp_path, real)


def _run(command: str, shown: list[str], shell: dict[str, str], folder: Path, real: dict[str, str]) -> None:
    words = ID.sub(lambda found: real.get(found[0], found[0]), command)
    done = subprocess.run(
        ["bash", "-c", words], env=shell, cwd=folder, capture_output=True, text=True, timeout=STEP_SECONDS, check=False
    )
    wrong = [line for line in shown if line.startswith(f"{PROGRAM}: ")]
    said = ID.sub(lambda found: next((k for k, v in real.items() if v == found[0]), found[0]), done.stderr)
    assert said.splitlines() == wrong, (command, done.stderr)
    assert done.returncode == (1 if wrong else 0), command
    if (theirs := ID.search("\n".join(shown))) and (ours := ID.search(done.stdout)):
        real.setdefault(theirs[0], ours[0])
    right = [line for line in shown if line not in wrong]
    if right:
        printed, expected = _shape(done.stdout.splitlines()), _shape(right)
        assert len(printed) == len(expected), (command, done.stdout)
        # On a terminal of 80 columns, as the documents show it, the last columns are left out.
        assert all(ours.startswith(theirs) for ours, theirs in zip(printed, expected, strict=True)), (command, printed)


DIFFERS = (
    (r"\b[0-9a-f]{16,}\b|\b[0-9a-f]{8}…", "ID"),
    (r"\bQm[1-9A-Za-z]{44}\b", "CID"),
    (r"#[a-z2-7]{26}\b", "#KEY"),
    (r"\S{4}…\S{6}", "WHO"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME"),
    (r"(?<![\w.])/\S+", "PATH"),
    (r"\d+(\.\d+)?", "N"),
    (r"N ([KMGT]i)?B\b", "SIZE"),
    (r"\s+", " "),
)
"""What differs from run to run, and what stands for it."""


def _shape(lines: list[str]) -> list[str]:
    """Whole lines, with everything that differs from run to run made equal."""
    made = []
    for line in lines:
        for pattern, word in DIFFERS:
            line = re.sub(pattern, word, line)
        made.append(line.strip())
    return [line for line in made if line]


def test_python_in_the_readme_runs(tmp_path: Path) -> None:
    """The README's Python program runs as it stands, but for the folder that it uses."""
    (program,) = blocks("README.md", "python")
    assert "/tmp/my-vault" in program
    done = subprocess.run(
        [sys.executable, "-P", "-c", program.replace("/tmp/my-vault", str(tmp_path / "home"))],
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=STEP_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "greeting b'hello'" in done.stdout
    assert "content-erased" in done.stdout


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_in_the_documents_lead_somewhere(document: str) -> None:
    """Every relative link of a document names a file or folder that is there."""
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
        if "://" not in target:
            assert ((ROOT / document).parent / target).exists(), target
