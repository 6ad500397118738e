"""Commands that read: ls, log, watch, ballots.

Tables fit the terminal's width; in a pipe nothing is cut. `--json` prints the rows as the views keep them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from walytis_vault.cli.output import Column, emit, moment, printable, short_did, size, table
from walytis_vault.cli.session import Session, command, timeout_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from walytis_vault.bus.messages import Change

EVENTS = "events"
CONTENT_STATES = click.Choice(["available", "pending", "forgetting", "forgotten", "retracted"])
GONE = "(forgotten)"


def _name(row: dict[str, Any]) -> str:
    return str(row["name"] or (GONE if row["state"] == "forgotten" else ""))


LS_COLUMNS = (
    Column("ID", lambda r: r["content_id"]),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("SIZE", lambda r: size(r["size"]), right=True),
    Column("NAME", _name, elastic=True),
    Column("TIME", lambda r: moment(r["time"]), from_width=100),
    Column("TYPE", lambda r: r["media_type"] or "", from_width=140, elastic=True),
    Column("LABELS", lambda r: ",".join(r["labels"] or ()), from_width=140, elastic=True),
    Column("AUTHOR", lambda r: short_did(r["author"]), from_width=120),
)
BALLOT_COLUMNS = (
    Column("BALLOT", lambda r: r["ballot_id"]),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("CONTENTS", lambda r: len(r["contents"]), right=True),
    Column("CONSENTS", lambda r: f"{len(r['consents'])}/{len(r['electorate'])}", right=True),
    Column("RECEIPTS", lambda r: len(r["receipts"]), right=True),
    Column("TIME", lambda r: moment(r.get("time")), from_width=100),
    Column("BY", lambda r: short_did(r.get("author")), from_width=120),
)


def _builtins(rows: Sequence[Any]) -> list[dict[str, Any]]:
    import msgspec

    return [msgspec.to_builtins(row) for row in rows]


limit_option = click.option("--limit", type=click.IntRange(min=1), help="At most so many rows (default: all).")


@command("ls")
@click.option("--state", type=CONTENT_STATES, help="Only contents in this state.")
@click.option("--label", help="Only contents with this label.")
@limit_option
@timeout_option(60.0)
def ls(session: Session, state: str | None, label: str | None, limit: int | None, timeout: float) -> None:
    """List the contents."""
    filters = {name: value for name, value in (("state", state), ("label", label)) if value is not None}
    with session.client(timeout) as client:
        rows = _builtins(client.query("catalogue", limit=limit, **filters))
    if session.json:
        emit(rows)
    else:
        table(rows, LS_COLUMNS)


@command("ballots")
@limit_option
@timeout_option(60.0)
def ballots(session: Session, limit: int | None, timeout: float) -> None:
    """List the proposals to forget, and who agreed."""
    with session.client(timeout) as client:
        rows = _builtins(client.query("ballots", limit=limit))
    if session.json:
        emit(rows)
    else:
        table(rows, BALLOT_COLUMNS)


def _show_change(session: Session, change: Change) -> None:
    if session.json:
        emit(change)
        return
    what = change.type.partition("/")[0].replace("-", " ")
    click.echo(printable(f"{change.position:>7}  {moment(change.time)}  {what:<22}  {' '.join(change.ids)}").rstrip())


@command("log")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events after this position.")
@timeout_option(60.0)
def log(session: Session, after: int, timeout: float) -> None:
    """Print the events, oldest first: what happened, when, to which content."""
    with session.client(timeout) as client:
        last = client.status().position
        if after >= last:
            return
        for change in client.subscribe(EVENTS, after=after):
            _show_change(session, change)
            if change.position >= last:
                return


@command("watch")
@click.argument("view", default=EVENTS)
@click.option("--after", type=click.IntRange(min=0), help="Start after this position (default: now).")
@timeout_option(60.0)
def watch(session: Session, view: str, after: int | None, timeout: float) -> None:
    """Follow a view, or the events, until Ctrl-C."""
    with session.client(timeout) as client:
        start = client.status().position if after is None else after
        for change in client.subscribe(view, after=start):
            _show_change(session, change)


COMMANDS = (ls, log, watch, ballots)
