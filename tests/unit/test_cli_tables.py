"""The tables of every view, and the lines of `log`, on narrow and wide terminals, with the longest values there are."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

from walytis_vault.bus.messages import Change
from walytis_vault.cli import columns, events
from walytis_vault.cli.output import cell_width, table
from walytis_vault.cli.session import Session

TIME = "2026-11-22T18:38:10.123Z"
IDS = [f"{n:032x}" for n in range(1, 6)]
LONG = "words of 日本 that go on " * 12


def did(letter: str) -> str:
    """A member's name of full length."""
    return f"did:walytisidentities:Qm{letter * 44}#{letter * 26}"


ROWS: dict[str, list[dict[str, Any]]] = {
    "ballots": [
        {
            "ballot_id": IDS[0],
            "state": "withdrawn",
            "contents": IDS * 200,
            "electorate": [did(c) for c in "abcdefghijkl"],
            "consents": [did(c) for c in "abcdefghijk"],
            "receipts": [did(c) for c in "abcdefghijkl"],
            "time": TIME,
            "proposer": did("a"),
            "reason": LONG,
        }
    ],
    "members": [
        {
            "did": did("a"),
            "state": "removed",
            "time": TIME,
            "founder": False,
            "admitted_by": did("b"),
            "removed_by": did("c"),
            "reason": LONG,
            "devices": [
                {
                    "device": did(c),
                    "state": "removed",
                    "time": TIME,
                    "added_by": did("a"),
                    "removed_by": did("b"),
                    "reason": LONG,
                }
                for c in "ad"
            ],
        }
    ],
    "holders": [
        {
            "content_id": IDS[0],
            "state": "published",
            "member": did("a"),
            "device": did("b"),
            "here": False,
            "held_by": [did(c) for c in "cdefgh"],
            "time": TIME,
        }
    ],
    "timeline": [
        {
            "position": 1_000_000,
            "time": TIME,
            "type": kind,
            "contents": contents,
            "ballot_id": ballot,
            "member": member,
            "author": did("a"),
        }
        for kind, contents, ballot, member in (
            ("forgetting-withdrawn/1", [], IDS[1], None),
            ("content-erased/1", IDS, None, None),
            ("member-admitted/1", [], None, did("b")),
        )
    ],
    "audit": [
        {
            "number": 1_000_000,
            "verdict": "accepted",
            "events": 1000,
            "time": TIME,
            "author": did("a"),
            "reason": LONG,
        }
    ],
}


class Terminal(io.StringIO):
    """A stdout that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def printed_on(monkeypatch: pytest.MonkeyPatch, screen: int, show: Callable[[], None]) -> list[str]:
    """The lines that `show` prints on a terminal of so many columns."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal := Terminal())
        patched.setenv("COLUMNS", str(screen))
        show()
    return [click.unstyle(line) for line in terminal.getvalue().splitlines()]


@pytest.mark.parametrize("screen", [80, 100, 120, 140, 160, 180, 200])
@pytest.mark.parametrize("view", sorted(ROWS))
def test_every_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, view: str, screen: int) -> None:
    """No line is wider than the terminal; each row is one line; what people copy is there in full."""
    rows = columns.shown_rows(view, ROWS[view])
    printed = printed_on(monkeypatch, screen, lambda: table(rows, columns.of_rows(view, rows)))
    assert len(printed) == len(rows) + 1
    assert [line for line in printed if cell_width(line) > screen] == []
    copied = {"ballots": [IDS[0]], "holders": [IDS[0]], "members": [did("a").rpartition("#")[2]]}
    assert all(text in printed[1] for text in copied.get(view, []))
    if view == "timeline":
        assert IDS[1] in printed[1]


@pytest.mark.parametrize("screen", [80, 160])
def test_lines_of_the_log_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, screen: int) -> None:
    """Whatever ids an event has, its line fits, and the first of them is in full where there is room for one."""
    several = ((), IDS[:1], IDS, IDS * 50, (did("a"),), (did("a"), did("b")))
    kind = "forgetting-consented/1"
    changes = [Change(position=10**6, type=kind, author=did("a"), time=TIME, ids=tuple(ids)) for ids in several]

    def show() -> None:
        for change in changes:
            events._show(Session(), change)

    printed = printed_on(monkeypatch, screen, show)
    assert len(printed) == len(several)
    assert [line for line in printed if cell_width(line) > screen] == []
    assert all(IDS[0] in line for line in printed[1 : 3 if screen == 160 else 1])
