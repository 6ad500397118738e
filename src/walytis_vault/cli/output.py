"""How results are printed: JSON, lines and tables to stdout; progress to stderr when a person is watching.

Names and labels are written by other members: nothing of them reaches a terminal but printable characters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

GAP = "  "
ELLIPSIS = "…"
LEAST_COLUMN = 6
STATE_COLOURS = {
    "available": "green",
    "carried": "green",
    "accepted": "green",
    "published": "green",
    "member": "green",
    "removed": "red",
    "used": "green",
    "expired": "magenta",
    "revoked": "red",
    "retracted": "magenta",
    "forgotten": "red",
    "refused": "red",
    "withdrawn": "magenta",
    "erased": "red",
    "void": "red",
}
"""Readable on light and on dark; yellow, cyan and blue are not."""
EMPHASIZED = frozenset({"pending", "open", "forgetting", "waiting"})
"""States that will not last: bold."""


def printable(text: object) -> str:
    """`text` with everything that could steer a terminal, or turn its direction, shown as �."""
    return "".join("�" if unicodedata.category(c)[0] == "C" else c for c in str(text))


def one_line(text: str) -> str:
    """`text` as one printable line."""
    return printable(" ".join(text.split()))


def emit(document: Any) -> None:
    """Print one JSON document on a line of its own; structs become objects."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()


def fields(pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one pair a line."""
    wide = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{wide}}{GAP}{printable(value)}")


def size(count: object) -> str:
    """A number of bytes for people: 0 B, 12.5 KiB."""
    if not isinstance(count, int):
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def moment(iso: object) -> str:
    """ISO 8601 text, to the second, in UTC as it stands."""
    text = str(iso or "")
    return f"{text[:10]} {text[11:19]}Z" if len(text) >= 19 and text[10] == "T" else text


def short_did(did: object) -> str:
    """The part of a DID by which people tell members apart."""
    text = str(did or "").rpartition(":")[2]
    return text if len(text) <= 12 else f"{text[:4]}{ELLIPSIS}{text[-6:]}"


def screen_width() -> int | None:
    """Columns of the terminal that stdout is; None when it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its heading.
        cell: makes the text from a row.
        from_width: shown on terminals of at least this many columns; everywhere else always.
        below_width: shown on terminals of fewer columns only, in place of something longer; 0: no such bound.
        right: aligned to the right.
        elastic: may be cut to make the table fit.
        coloured: coloured by its value as a state.
        optional: left out when no row has anything to say there.
    """

    title: str
    cell: Callable[[dict[str, Any]], object]
    from_width: int = 0
    below_width: int = 0
    right: bool = False
    elastic: bool = False
    coloured: bool = False
    optional: bool = False


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> None:
    """Print rows aligned. On a terminal it fits the width; in a pipe or file nothing is left out or cut."""
    screen = screen_width()
    shown = [c for c in columns if (screen is None or c.from_width <= screen) and _stands_in(c, screen)]
    shown = [c for c in shown if screen is None or not c.optional or any(c.cell(row) for row in rows)]
    cells = [[printable(c.cell(row)) for c in shown] for row in rows]
    widths = [max([cell_width(c.title), *(cell_width(line[i]) for line in cells)]) for i, c in enumerate(shown)]
    if screen is not None:
        _squeeze(widths, shown, screen)
    click.secho(_join([_fit(c.title, widths[i], c) for i, c in enumerate(shown)]), bold=True)
    for line in cells:
        click.echo(_join([_paint(_fit(text, widths[i], shown[i]), text, shown[i]) for i, text in enumerate(line)]))


def _stands_in(column: Column, screen: int | None) -> bool:
    return not column.below_width or (screen is not None and screen < column.below_width)


def _squeeze(widths: list[int], columns: Sequence[Column], screen: int) -> None:
    """Take what is too much from the widest elastic columns."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > screen:
        elastic = [i for i, c in enumerate(columns) if c.elastic and widths[i] > LEAST_COLUMN]
        if not elastic:
            return
        widths[max(elastic, key=widths.__getitem__)] -= 1


def cell_width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _fit(text: str, width: int, column: Column) -> str:
    if cell_width(text) > width:
        while cell_width(text) > width - 1:
            text = text[:-1]
        text += ELLIPSIS
    padding = " " * (width - cell_width(text))
    return padding + text if column.right else text + padding


def _paint(fitted: str, value: str, column: Column) -> str:
    if not column.coloured or os.environ.get("NO_COLOR"):
        return fitted
    return click.style(fitted, fg=STATE_COLOURS.get(value), bold=True if value in EMPHASIZED else None)


def _join(parts: Sequence[str]) -> str:
    return GAP.join(parts).rstrip()


@contextlib.contextmanager
def progress(label: str, *, wanted: bool = True) -> Iterator[Callable[[int, int | None], None] | None]:
    """A progress bar on stderr for the time of the block, or None when nobody is watching.

    Args:
        label: what is going on.
        wanted: False where something else is written to the terminal meanwhile.

    Yields:
        A callback for bytes done and bytes in total (None: not known).
    """
    if not (wanted and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(escape(printable(label)), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
