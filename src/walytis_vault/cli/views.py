"""Commands that read: ls, log, watch, ballots.

Tables fit the terminal's width; in a pipe nothing is cut. `--json` prints the rows as the views keep them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from walytis_vault.cli.output import ELLIPSIS, Column, emit, moment, printable, screen_width, short_did, size, table
from walytis_vault.cli.session import Session, command, timeout_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from walytis_vault.bus.messages import Change

EVENTS = "events"
CONTENT_STATES = click.Choice(["available", "pending", "forgetting", "forgotten", "retracted", "all"])
BALLOT_STATES = click.Choice(["open", "carried", "refused", "withdrawn", "all"])
SORTS = click.Choice(["-order", "order", "-time", "time", "-size", "size"])
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
    Column("TIME", lambda r: moment(r["time"]), from_width=100),
    Column("BY", lambda r: short_did(r["proposer"]), from_width=120),
)


def _builtins(rows: Sequence[Any]) -> list[dict[str, Any]]:
    import msgspec

    return [msgspec.to_builtins(row) for row in rows]


limit_option = click.option("--limit", type=click.IntRange(min=1), help="At most so many rows (default: all).")


@command("ls")
@click.option("--state", type=CONTENT_STATES, help="Only contents in this state (default: all but the retracted).")
@click.option("--author", metavar="DID", help="Only contents of this member.")
@click.option("--name", help="Only contents with this name.")
@click.option("--type", "media_type", metavar="TYPE", help="Only contents of this media type.")
@click.option("--label", help="Only contents with this label.")
@click.option("--text", help="Only contents with this text in a name or label.")
@click.option("--since", metavar="TIME", help="Only contents published at or after this time (ISO 8601, UTC).")
@click.option("--until", metavar="TIME", help="Only contents published before this time.")
@click.option("--revises", metavar="ID", help="Only revisions of this content.")
@click.option("--sort", type=SORTS, help="By order on the log, time or size; with - the last or largest first.")
@limit_option
@timeout_option(60.0)
def ls(session: Session, limit: int | None, timeout: float, **filters: str | None) -> None:
    """List the contents, the newest first."""
    _list(session, "catalogue", LS_COLUMNS, limit, timeout, filters)


@command("ballots")
@click.option("--state", type=BALLOT_STATES, help="Only ballots in this state (default: all).")
@click.option("--content", "content_id", metavar="ID", help="Only ballots about this content.")
@limit_option
@timeout_option(60.0)
def ballots(session: Session, limit: int | None, timeout: float, **filters: str | None) -> None:
    """List the proposals to forget, and who agreed."""
    _list(session, "ballots", BALLOT_COLUMNS, limit, timeout, filters)


def _list(
    session: Session,
    view: str,
    columns: Sequence[Column],
    limit: int | None,
    timeout: float,
    filters: dict[str, str | None],
) -> None:
    given = {name: value for name, value in filters.items() if value is not None}
    with session.client(timeout) as client:
        rows = client.query(view, limit=limit, **given)
    if session.json:
        emit(rows)
    else:
        table(_builtins(rows), columns)


def _show_change(session: Session, change: Change) -> None:
    if session.json:
        emit(change)
        return
    what = change.type.partition("/")[0].replace("-", " ")
    start, ids = f"{change.position:>7}  {moment(change.time)}  {what:<22}  ", list(change.ids)
    screen = screen_width()
    if screen is not None and len(start) + len(" ".join(ids)) > screen:  # in full where it fits, and in a pipe
        ids = [short_did(i) if i.startswith("did:") else f"{i[:8]}{ELLIPSIS}" for i in ids]
    click.echo(printable(start + " ".join(ids)).rstrip())


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
