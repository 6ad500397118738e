"""Reads moments, spans and sizes as people write them on a command line."""

from __future__ import annotations

import contextlib
import datetime as dt
import re

import click

SPAN = re.compile(r"([1-9][0-9]{0,8})([smhdw]?)")
SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
UNITS = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_as_of(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | dt.datetime | None:
    """Callback of an option: a position (a number alone), a span back from now such as 2h or 30d, or a moment.

    Raises:
        click.BadParameter: anything else, which is wrong usage.
    """
    if text is None or (text.isascii() and text.isdigit() and len(text) <= 15):
        return None if text is None else int(text)
    return _past(text, "no position and no time: give a position (a number),")


def read_past(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> dt.datetime | None:
    """Callback of an option: a span back from now such as 2h or 30d, or a moment (ISO 8601, UTC without a zone).

    Raises:
        click.BadParameter: anything else, which is wrong usage.
    """
    return None if text is None else _past(text, "no time: give")


def _past(text: str, refusal: str) -> dt.datetime:
    with contextlib.suppress(ValueError, OverflowError):
        if (span := SPAN.fullmatch(text)) is not None:
            return dt.datetime.now(dt.UTC) - dt.timedelta(**{UNITS[span[2]]: int(span[1])})
        moment = dt.datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
    raise click.BadParameter(f"{text[:40]!r} is {refusal} a span back from now (90s, 2h, 30d), or 2026-01-31T12:00:00Z")


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


def read_size(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Callback of an option: a number of bytes, or with K, M, G or T behind it (1024 each).

    Raises:
        click.BadParameter: anything else, which is wrong usage.
    """
    if text is None:
        return None
    if (size := SIZE.fullmatch(text.strip())) is None:
        raise click.BadParameter(f"{text[:40]!r} is no size: give bytes, or a number with K, M, G or T, such as 64M")
    return int(size[1]) << 10 * " KMGT".index(size[2].upper() or " ")
