"""Commands that list and follow what happened: log, watch.

A line for each event, in full where it fits and in a pipe. `--json` prints one document per line.
"""

from __future__ import annotations

import datetime as dt
from heapq import merge
from typing import TYPE_CHECKING

import click

from walytis_vault.cli.output import ELLIPSIS, cell_width, emit, moment, printable, screen_width, short_did
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.views import as_of_option
from walytis_vault.cli.when import read_past

if TYPE_CHECKING:
    from walytis_vault.bus.messages import Change

EVENTS = "events"


def _show(session: Session, change: Change) -> None:
    if session.json:
        emit(change)
        return
    what = change.type.partition("/")[0].replace("-", " ")
    start, ids = f"{change.position:>7}  {moment(change.time)}  {what:<22}  ", list(change.ids)
    click.echo(printable(start + _fitting(ids, screen_width(), len(start))).rstrip())


def _fitting(ids: list[str], screen: int | None, start: int) -> str:
    """Ids in full where they fit; else the first in full, because people copy it, and what fits of the rest."""
    whole = " ".join(ids)
    if screen is None or start + cell_width(whole) <= screen:
        return whole
    short = [short_did(i) if i.startswith("did:") else f"{i[:8]}{ELLIPSIS}" for i in ids]
    for shown in (ids[:1] + short[1:], short):
        if start + len(" ".join(shown)) <= screen:
            return " ".join(shown)
    for count in range(len(ids) - 1, -1, -1):
        for first in (ids[:1], short[:1]):
            shown = [*first, *short[1:count], f"+{len(ids) - max(count, 1)}"]
            if start + len(" ".join(shown)) <= screen:
                return " ".join(shown)
    return short[0]


@command("log")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events after this position.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N positions.")
@click.option("--content", metavar="ID", help="Only events about this content, or this ballot.")
@click.option("--author", metavar="DID", help="Only events of this member.")
@click.option("--type", "kind", metavar="TYPE", help="Only events of this type, such as content-published.")
@click.option("--since", metavar="WHEN", callback=read_past, help="Only events from this time on, or the last 2h, 30d.")
@click.option("--until", metavar="WHEN", callback=read_past, help="Only events before this time.")
@as_of_option
@timeout_option(60.0)
def log(
    session: Session,
    after: int,
    last: int | None,
    content: str | None,
    author: str | None,
    kind: str | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
    as_of: int | dt.datetime | None,
    timeout: float,
) -> None:
    """Print the events, oldest first: what happened, when, to which content."""
    with session.client(timeout) as client:
        end = client.status().position
        if isinstance(as_of, int):
            end = min(end, as_of)
        if last is not None:
            after = max(after, end - last)
        # The node ends it: the last positions may be void, and then no event comes for them.
        who = {} if author is None else {"author": author}
        what = [{}] if content is None else [{"content_id": content.lower()}, {"ballot_id": content.lower()}]
        found = [client.subscribe(EVENTS, after=after, until=end, **who, **ids) for ids in what]
        for change in merge(*found, key=lambda change: change.position):
            time = dt.datetime.fromisoformat(change.time)
            if (
                (kind is None or kind in (change.type, change.type.partition("/")[0]))
                and (since is None or time >= since)
                and (until is None or time < until)
                and not (isinstance(as_of, dt.datetime) and time > as_of)
            ):
                _show(session, change)


@command("watch")
@click.argument("view", default=EVENTS)
@click.option("--after", type=click.IntRange(min=0), help="Start after this position (default: now).")
@timeout_option(60.0)
def watch(session: Session, view: str, after: int | None, timeout: float) -> None:
    """Follow a view, or the events, until Ctrl-C."""
    with session.client(timeout) as client:
        start = client.status().position if after is None else after
        for change in client.subscribe(view, after=start):
            _show(session, change)


COMMANDS = (log, watch)
