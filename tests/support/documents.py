"""What the documents show: their blocks, and every command of the program in blocks and in spans of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from walytis_vault.cli.app import application

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "walytis-vault"
DOCUMENTS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
    if not p.name.startswith("reference-")
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
SHELLS = ("", "console", "ini", "text")
APPLICATION = application()


def blocks(document: str, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    for kind, text in BLOCK.findall((ROOT / document).read_text()):
        if kind == language:
            yield text


def spans(document: str) -> Iterator[str]:
    """The spans of code outside blocks, each on one line."""
    for span in SPAN.findall(BLOCK.sub("", (ROOT / document).read_text())):
        yield " ".join(span.split())


def in_blocks(document: str, languages: tuple[str, ...] = SHELLS) -> Iterator[str]:
    """The program's commands in blocks, with the program."""
    for language in dict.fromkeys(languages):
        for block in blocks(document, language):
            for line in block.replace("\\\n", " ").splitlines():
                if (found := re.search(rf"(?:^|[$/] ?)({PROGRAM} [a-z-].*)", line)) is not None:
                    yield found[1]


def in_spans(document: str) -> Iterator[str]:
    """The same in spans, there also without the program."""
    for words in spans(document):
        first = words.partition(" ")[0]
        if first == PROGRAM and words != PROGRAM and "\\n" not in words:
            yield words
        elif first in APPLICATION.commands and " --" in words:
            yield f"{PROGRAM} {words}"


def shown(document: str) -> Iterator[str]:
    """Each command of a document."""
    yield from in_blocks(document)
    yield from in_spans(document)
