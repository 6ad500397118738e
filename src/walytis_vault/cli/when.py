"""Reads moments and spans as people write them on a command line."""

from __future__ import annotations

import contextlib
import datetime as dt
import re

import click

SPAN = re.compile(r"([1-9][0-9]{0,8})([smhdw]?)")
UNITS = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_when(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> dt.datetime | dt.timedelta | None:
    """Callback of an option: read a span such as 90s, 15m, 12h, 30d, 8w, or an ISO 8601 moment with its time zone.

    Raises:
        click.BadParameter: anything else, which is wrong usage.
    """
    if text is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        if (span := SPAN.fullmatch(text)) is not None:
            return dt.timedelta(**{UNITS[span[2]]: int(span[1])})
        moment = dt.datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment
    raise click.BadParameter(f"{text[:40]!r} is no time: give a span (90s, 15m, 12h, 30d) or 2030-01-31T12:00:00Z")
