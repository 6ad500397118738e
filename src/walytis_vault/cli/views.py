"""Commands that ask views: ls, ballots, members, holders, query; and retry, for what a view could not fold.

Tables fit the terminal's width; in a pipe nothing is cut. `--json` prints the rows as the views keep them.
With `--as-of` each shows the view as it was, and what was forgotten since as a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from walytis_vault.cli.columns import of_rows, shown_rows
from walytis_vault.cli.output import emit, printable, table
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.when import read_as_of

if TYPE_CHECKING:
    from walytis_vault.bus.requests import AsOf
    from walytis_vault.client import Client

CONTENT_STATES = click.Choice(["available", "pending", "forgetting", "forgotten", "retracted", "all"])
BALLOT_STATES = click.Choice(["open", "carried", "refused", "withdrawn", "all"])
SORTS = click.Choice(["-order", "order", "-time", "time", "-size", "size"])
F = TypeVar("F", bound=Callable[..., Any])

as_of_option = click.option(
    "--as-of",
    metavar="WHEN",
    callback=read_as_of,
    help="As it was: at a position (a number), so long ago (2h, 30d), or at a time (ISO 8601, UTC).",
)


def paged(function: F) -> F:
    """The options that all lists have."""
    for option in (
        timeout_option(60.0),
        as_of_option,
        click.option("--cursor", help="Go on where a list with --limit ended."),
        click.option("--limit", type=click.IntRange(min=1), help="At most so many rows (default: all)."),
    ):
        function = option(function)
    return function


@command("ls")
@click.option("--state", type=CONTENT_STATES, help="Only contents in this state (default: all but the retracted).")
@click.option("--author", metavar="DID", help="Only contents of this member.")
@click.option("--name", help="Only contents with this name.")
@click.option("--type", "media_type", metavar="TYPE", help="Only contents of this media type, or family (image/*).")
@click.option("--label", help="Only contents with this label.")
@click.option("--text", help="Only contents with these words, or parts of words, in name or labels.")
@click.option("--since", metavar="TIME", help="Only contents published at or after this time (ISO 8601, UTC).")
@click.option("--until", metavar="TIME", help="Only contents published before this time.")
@click.option("--min-size", type=click.IntRange(min=0), metavar="BYTES", help="Only contents of at least this size.")
@click.option("--max-size", type=click.IntRange(min=0), metavar="BYTES", help="Only contents of at most this size.")
@click.option("--revises", metavar="ID", help="Only revisions of this content.")
@click.option("--current", is_flag=True, default=None, help="Only what no later revision has replaced.")
@click.option("--conflict", is_flag=True, default=None, help="Only versions that stand side by side.")
@click.option("--sort", type=SORTS, help="By order on the log, time or size; with - the last or largest first.")
@paged
def ls(session: Session, **asked: Any) -> None:
    """List the contents, the newest first."""
    show(session, "catalogue", **asked)


@command("ballots")
@click.option("--state", type=BALLOT_STATES, help="Only ballots in this state (default: all).")
@click.option("--content", "content_id", metavar="ID", help="Only ballots about this content.")
@click.option("--proposer", metavar="DID", help="Only ballots that this member proposed.")
@click.option("--waiting", metavar="DID", help="Only open ballots that wait for this member.")
@paged
def ballots(session: Session, **asked: Any) -> None:
    """List the proposals to forget, and who agreed."""
    show(session, "ballots", **asked)


@command("members")
@click.option("--state", type=click.Choice(["member", "removed", "all"]), help="Only these (default: all).")
@paged
def members(session: Session, **asked: Any) -> None:
    """List the members, each with its devices below it when it has several."""
    show(session, "members", **asked)


@command("holders")
@click.argument("content_id", metavar="[ID]", required=False)
@click.option("--device", metavar="DID", help="Only what this device signed.")
@click.option("--state", type=click.Choice(["published", "erased", "all"]), help="Only these (default: all).")
@paged
def holders(session: Session, **asked: Any) -> None:
    """List which devices signed that they published or erased a content, or all contents."""
    show(session, "holders", **asked)


@command("query")
@click.argument("view")
@click.argument("filters", metavar="[FILTER=VALUE]...", nargs=-1)
@paged
def query(session: Session, view: str, filters: tuple[str, ...], **asked: Any) -> None:
    """Ask any view, those of plug-ins too, such as: query timeline type=content-published/1 sort=order."""
    given: dict[str, Any] = {}
    for text in filters:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.UsageError(f"{text[:60]!r} is no filter: write FILTER=VALUE, such as state=open")
        given[name] = value
    if overlap := sorted(given.keys() & asked.keys()):
        raise click.UsageError(f"{overlap[0]} is an option: --{overlap[0].replace('_', '-')}")
    show(session, view, **asked, **given)


def show(
    session: Session,
    view: str,
    *,
    limit: int | None,
    timeout: float,
    cursor: str | None,
    as_of: AsOf | None,
    **filters: Any,
) -> None:
    """Print the rows of a view."""
    given = {name: value for name, value in filters.items() if value is not None}
    more: str | None = None
    with session.client(timeout) as client:
        if limit is None and cursor is None:
            rows: Any = client.query(view, limit=None, as_of=as_of, **given)
        else:
            page = client.page(view, limit=limit or 1_000_000, cursor=cursor, as_of=as_of, **given)
            rows, more = page.rows, page.cursor
    if session.json:
        emit(rows)
    else:
        plain = shown_rows(view, [row.as_dict() for row in rows])
        table(plain, of_rows(view, plain))
    if more is not None:
        click.echo(f"more rows follow: repeat it with --cursor {more}", err=True)


def show_past(session: Session, client: Client, views: list[str], as_of: AsOf) -> None:
    """Print whole views as they were: one document, or a table for each."""
    found = {view: client.query(view, limit=None, as_of=as_of) for view in views}
    if session.json:
        emit(found)
        return
    for view, rows in found.items():
        click.secho(printable(f"{view}, as of {as_of}"), bold=True)
        plain = shown_rows(view, [row.as_dict() for row in rows])
        table(plain, of_rows(view, plain))


@command("retry")
@click.argument("view", required=False)
@timeout_option(3600.0)
@click.pass_context
def retry(ctx: click.Context, session: Session, view: str | None, timeout: float) -> None:
    """Fold again what a view, or any view, could not fold. Exit code 1: something still fails."""
    with session.client(timeout) as client:
        report = client.retry(view, timeout=timeout)
    if session.json:
        emit(report)
    else:
        for name, outcome in report.items():
            why = f": {outcome['error']}" if outcome["error"] else ""
            click.echo(printable(f"{name}: {outcome['retried']} folded now, {outcome['parked']} still parked{why}"))
    if any(outcome["parked"] for outcome in report.values()):
        ctx.exit(1)


COMMANDS = (ls, ballots, members, holders, query, retry)
