"""What the command line prints: aligned, fitting, and free of anything that steers a terminal."""

from __future__ import annotations

import io
import os
import sys
import unicodedata

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from walytis_vault.cli.columns import BALLOTS, LS
from walytis_vault.cli.output import cell_width, moment, one_line, printable, short_did, size, table

TEXTS = st.text(max_size=60)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "content_id": st.binary(min_size=16, max_size=16).map(bytes.hex),
            "state": st.sampled_from(["available", "pending", "forgetting", "forgotten", "retracted"]),
            "size": st.none() | st.integers(0, 1 << 40),
            "name": st.none() | TEXTS,
            "time": st.just("2026-11-22T18:38:10.123Z"),
            "media_type": st.none() | TEXTS,
            "labels": st.lists(TEXTS, max_size=3),
            "author": st.just("did:walytis:abcdefghijklmnopqrstuvwxyz"),
        }
    ),
    max_size=5,
)


class Terminal(io.StringIO):
    """A stdout that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def _printed(rows: list[dict[str, object]], columns: int | None) -> list[str]:
    stdout, before = sys.stdout, os.environ.get("COLUMNS")
    sys.stdout = Terminal() if columns else io.StringIO()
    os.environ["COLUMNS"] = str(columns or 80)
    try:
        table(rows, LS)
        return [click.unstyle(line) for line in sys.stdout.getvalue().split("\n")]
    finally:
        sys.stdout = stdout
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ROWS, st.sampled_from([80, 100, 120, 160, 200]))
def test_tables_fit_the_terminal(rows: list[dict[str, object]], columns: int) -> None:
    """No line is wider than the terminal, each row is one line, and no id is cut."""
    lines = _printed(rows, columns)
    assert len(lines) == len(rows) + 2
    assert all(cell_width(line) <= columns for line in lines)
    assert all(str(row["content_id"]) in line for row, line in zip(rows, lines[1:], strict=False))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ROWS)
def test_nothing_is_cut_in_a_pipe(rows: list[dict[str, object]]) -> None:
    """Where no terminal reads, all columns are there in full."""
    lines = _printed(rows, None)
    assert lines[0].split() == [c.title for c in LS]
    for row, line in zip(rows, lines[1:], strict=False):
        assert printable(row["name"] or "").strip() in line


@given(TEXTS)
def test_printed_text_cannot_steer_a_terminal(text: str) -> None:
    """Control, format and private characters never reach the terminal."""
    shown = printable(text)
    assert len(shown) == len(text)
    assert not [c for c in shown if unicodedata.category(c)[0] == "C"]
    assert "\n" not in one_line(text)


def test_direction_override_is_defused() -> None:
    """A name that turns the reading direction cannot pretend to another ending."""
    assert printable("photo\u202egnp.exe") == "photo�gnp.exe"


def test_wide_and_combining_characters_are_measured() -> None:
    """Chinese characters count twice, combining accents not at all."""
    assert cell_width("日本") == 4
    assert cell_width("é") == 1


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (25 << 20, "25.0 MiB"), (None, "")]
)
def test_sizes_read_well(count: int | None, text: str) -> None:
    """Sizes are shown with the unit that fits."""
    assert size(count) == text


def test_moments_and_members_read_well() -> None:
    """Times are to the second in UTC; DIDs by their ends."""
    assert moment("2026-11-22T18:38:10.123456+00:00") == "2026-11-22 18:38:10Z"
    assert moment(None) == ""
    assert short_did("did:walytis:abcdefghijklmnopqrstuvwxyz") == "abcd…uvwxyz"
    assert short_did(None) == ""


def test_every_column_of_ballots_can_be_made() -> None:
    """The table of ballots needs no more than the fields that a ballot is sure to have."""
    row = {"ballot_id": "00", "state": "open", "contents": ["a"], "electorate": ["x", "y"], "consents": ["x"],
           "receipts": [], "time": "", "proposer": "x"}  # fmt: skip
    assert [str(c.cell(row)) for c in BALLOTS][3] == "1/2"
