"""Commands about a vault as a whole: init, serve, status, audit, replay, demo.

`init` and `serve` are the only ones that open a home themselves. `init` never asks a question when stdin is no
terminal, and never touches a home that holds a vault already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from walytis_vault import logs
from walytis_vault.cli.failure import complain
from walytis_vault.cli.output import emit, fields, printable, short_did
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.views import show_past
from walytis_vault.cli.when import read_as_of, read_size
from walytis_vault.domain.errors import LockedError, MisuseError
from walytis_vault.logs import LEVELS, Format

if TYPE_CHECKING:
    from walytis_vault.bus.messages import ViewStatus
    from walytis_vault.bus.requests import AsOf
    from walytis_vault.fetching import FetchWish

PASSPHRASE_LIMIT = 4096
"""Bytes of a passphrase file."""
LONG_WORK_SECONDS = 3600.0
NETWORKS = click.Choice(["loopback", "lan", "public"])

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the passphrase from the first line of FILE.",
)


views_option = click.option(
    "--views",
    metavar="URL",
    help="Keep the views there: sqlite (a file in the home), or postgresql://user@host/database. Leave the password"
    " to ~/.pgpass or PGPASSWORD: it is never stored.",
)


def read_passphrase(file: Path) -> str:
    """The first line of a passphrase file, without its end of line.

    Raises:
        MisuseError: the file is empty, too long or not UTF-8.
        OSError: it cannot be read.
    """
    with file.open("rb") as source:
        raw = source.read(PASSPHRASE_LIMIT + 1)
    if len(raw) > PASSPHRASE_LIMIT:
        raise MisuseError(f"{file} is longer than {PASSPHRASE_LIMIT} bytes: it holds no passphrase")
    try:
        passphrase = raw.decode().partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError as error:
        raise MisuseError(f"{file} is not UTF-8 text: it holds no passphrase") from error
    if not passphrase:
        raise MisuseError(f"the first line of {file} is empty: write the passphrase there")
    return passphrase


@command("init")
@click.option("--name", default="vault", show_default=True, help="What the vault is called; its members see it.")
@passphrase_option
@click.option("--network", type=NETWORKS, default="loopback", show_default=True, help="Whom the node talks to.")
@click.option(
    "--removal",
    type=click.Choice(["any", "founder"]),
    default="any",
    show_default=True,
    help="Who may remove members: any member, or the founder alone. For ever.",
)
@views_option
def init(
    session: Session, name: str, passphrase_file: Path | None, network: str, removal: str, views: str | None
) -> None:
    """Make a new vault in the home folder.

    Its master key is kept in a key file that only you can read, or under a passphrase with --passphrase-file.
    """
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    from walytis_vault.node import create_vault

    home = session.home.absolute()
    made = create_vault(home, name=name, passphrase=passphrase, network=network, removal=removal, views=views)
    if session.json:
        emit({"vault_id": made.vault_id, "did": made.did, "home": str(home)})
        return
    fields([("vault", made.vault_id), ("you", made.did), ("home", home)])


@command("serve")
@passphrase_option
@click.option("--network", type=NETWORKS, help="Instead of what `init` was told.")
@click.option(
    "--fetch",
    type=click.Choice(["all", "small", "on-request"]),
    help="Which contents of other members to fetch before anybody asks. Kept for later starts.",
)
@click.option("--fetch-limit", metavar="SIZE", callback=read_size, help="The largest of them, such as 64M.")
@click.option("--fetch-space", metavar="SIZE", callback=read_size, help="Fetch none when contents take more than this.")
@views_option
@click.option(
    "--listen", metavar="tcp://127.0.0.1:PORT", help="Let clients connect there instead of a socket in the home."
)
@click.option("--until-eof", is_flag=True, help="End when stdin is closed too: for programs that start a node.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(LEVELS), default="warning", show_default=True)
@click.option("--metrics", metavar="127.0.0.1:PORT", help="Serve numbers for Prometheus there.")
def serve(
    session: Session,
    passphrase_file: Path | None,
    network: str | None,
    fetch: str | None,
    fetch_limit: int | None,
    fetch_space: int | None,
    views: str | None,
    listen: str | None,
    until_eof: bool,
    log_format: Format,
    log_level: str,
    metrics: str | None,
) -> None:
    """Run the vault's node in the foreground, until Ctrl-C or SIGTERM.

    Writes `ready ENDPOINT` to stderr when requests are answered.
    """
    logs.set_up(log_format, log_level)
    if until_eof:
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    try:
        from walytis_vault.fetching import FetchWish

        wish = FetchWish(mode=fetch, limit=fetch_limit, space=fetch_space)
        code = _serve(session.home, passphrase, network, wish, views, listen, metrics)
    except Exception as error:
        code = complain(error)
    sys.stdout.flush()
    logs.drain(0.3)
    os._exit(code)  # the embedded libraries keep threads that would hold the process for many seconds


def _serve(
    home: Path,
    passphrase: str | None,
    network: str | None,
    fetch: FetchWish,
    views: str | None,
    listen: str | None,
    metrics: str | None,
) -> int:
    from walytis_vault import node

    def attempt(given: str | None) -> int:
        return node.serve(
            home,
            passphrase=given,
            network=network,
            fetch=fetch,
            views=views,
            listen=listen,
            metrics=metrics,
            on_metrics=lambda url: click.echo(f"metrics {url}", err=True),
            on_ready=lambda endpoint: click.echo(f"ready {endpoint}", err=True),
        )

    try:
        return attempt(passphrase)
    except LockedError:
        if passphrase is not None or not sys.stdin.isatty():
            raise
    return attempt(click.prompt("Passphrase", hide_input=True, err=True))


def _end_with_stdin() -> None:
    """Wait for the end of stdin, then ask this process to end."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@command("status")
@timeout_option(10.0)
def status(session: Session, timeout: float) -> None:
    """Show the node's state: vault, positions, peers, views."""
    with session.client(timeout) as client:
        state = client.status()
    if session.json:
        emit(state)
        return
    pairs: list[tuple[str, object]] = [
        ("vault", state.vault_id),
        ("name", state.name),
        ("you", state.did),
        ("this device", state.device),
        ("state", "locked" if state.locked else "open"),
        ("network", state.network),
        ("position", state.position),
        ("peers", ", ".join(short_did(p) for p in state.peers) or "none"),
        ("version", state.version),
    ]
    pairs += [(f"view {name}", _view_state(name, view)) for name, view in state.views.items()]
    pairs += [(f"blocks {verdict}", count) for verdict, count in state.blocks.items()]
    pairs += [(name.replace("_", " "), _plain(value)) for name, value in state.details.items()]
    fields(pairs)


def _view_state(name: str, view: ViewStatus) -> str:
    said = [f"at {view.position}", f"hash {view.hash[:16]}"]
    if view.rebuilding is not None:
        said.append(f"being built: {view.rebuilding:.0%}")
    if view.parked:
        said.append(f"{view.parked} parked (walytis-vault retry {name})")
    if view.error:
        said.append(view.error)
    return ", ".join(said)


def _plain(value: object) -> object:
    """A mapping as a line of text; anything else as it is, and what is not known as such."""
    if not isinstance(value, Mapping):
        return "not known yet" if value is None else value
    return ", ".join(f"{str(name).replace('_', ' ')} {_plain(inner)}" for name, inner in value.items()) or "none"


@command("audit")
@click.option("--read-data", is_flag=True, help="Read and check every stored content as well.")
@timeout_option(LONG_WORK_SECONDS)
@click.pass_context
def audit(ctx: click.Context, session: Session, read_data: bool, timeout: float) -> None:
    """Verify the whole record again. Exit code 1: something is wrong."""
    with session.client(timeout) as client:
        report = client.audit(read_data=read_data, timeout=timeout)
    if session.json:
        emit(report)
    else:
        _show_report(report)
    if not report["ok"]:
        ctx.exit(1)


def _show_report(report: Mapping[str, Any]) -> None:
    kinds = report["certificates"]
    read = "read and checked" if report["data_read"] else "not read (--read-data does)"
    if report["data_read"] and not report["keys_read"]:
        read += ", but not the keys: the vault is locked"
    forgotten = [c for c in report["contents"] if "erased_by" in c]
    fields(
        [
            ("batches", f"{report['batches']} read, {report['void_batches']} void, {len(report['forks'])} forks"),
            ("events", report["events"]),
            ("blocks", _plain(report["blocks"])),
            ("certificates", f"{kinds['valid']} valid, {kinds['not_checkable']} cannot be checked here"),
            ("members", sum(1 for m in report["members"] if not m["removed"])),
            (
                "contents",
                f"{report['contents_total']}: {report['stored_here']} stored here, {report['erased_here']} erased",
            ),
            ("stored bytes", read),
            (
                "ballots",
                f"{report['ballots_total']}: {report['ballots_open']} open,"
                f" {report['receipts_missing']} with receipts missing",
            ),
        ]
    )
    for content in forgotten:
        waits = ", ".join(short_did(d) for d in content["not_erased_by"])
        if waits:
            click.echo(f"content {content['content_id']}: not erased yet by {printable(waits)}")
    for ballot in report["ballots"]:
        if ballot["state"] == "open":
            waits = ", ".join(short_did(d) for d in ballot["missing"])
            click.echo(f"ballot {ballot['ballot_id']}: no answer yet from {printable(waits)}")
    for block in report["refused_blocks"]:
        click.echo(f"refused block {block['block']}: {printable(block['reason'])}")
    for fork in report["forks"]:
        click.echo(f"fork: {printable(fork['device'])} made several batches with number {fork['number']}")
    for line in report["odd"]:
        click.echo(printable(line))
    for finding in report["findings"]:
        click.echo(f"PROBLEM batch {printable(finding['batch_id'])}: {printable(finding['reason'])}")
    for content in report["damaged"]:
        what = f"content {content['content_id']}: {content['problem']}"
        if content.get("repaired"):
            click.echo(printable(f"repaired {what}; it was fetched from a peer"))
        else:
            why = f"; not repaired: {content['not_repaired']}" if "not_repaired" in content else ""
            click.echo(printable(f"PROBLEM {what}{why}"))
    if report["damaged_total"] > len(report["damaged"]):
        click.echo(f"… and {report['damaged_total'] - len(report['damaged'])} more damaged contents")
    if report["odd_total"] > len(report["odd"]):
        click.echo(f"… and {report['odd_total'] - len(report['odd'])} more odd records")
    click.secho("sound" if report["ok"] else "NOT SOUND", fg="green" if report["ok"] else "red", bold=True)


@command("replay")
@click.argument("view", required=False)
@click.option("--until", metavar="WHEN", callback=read_as_of, help="Show it as it was instead: see `ls --as-of`.")
@timeout_option(LONG_WORK_SECONDS)
def replay(session: Session, view: str | None, until: AsOf | None, timeout: float) -> None:
    """Build a view (or all of them) again from the log, beside the old one, and put it in its place.

    With --until: print the view (or all) as it was at a position or time, and change nothing.
    """
    with session.client(timeout) as client:
        if until is not None:
            show_past(session, client, [view] if view is not None else list(client.status().views), until)
            return
        report = client.replay(view, timeout=timeout)
    if session.json:
        emit(report)
        return
    for name, built in report.items():
        verdict = "as before" if built["equal"] else f"DIFFERENT from before ({built['hash_before'][:16]})"
        click.echo(f"{printable(name)}: built again up to {built['position']}, hash {built['hash'][:16]}, {verdict}")


@command("demo")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
@click.option("--nodes", type=click.IntRange(1, 7), default=1, help="With so many members, each with a node.")
@click.pass_context
def demo(ctx: click.Context, session: Session, files: tuple[Path, ...], nodes: int) -> None:
    """Show it all on a vault of its own: publish FILEs, request them back, forget one.

    Uses real processes and a temporary home, which is removed at the end. With --nodes 3: members join, share
    letters, and forget one when all have consented.
    """
    if nodes > 1:
        from walytis_vault import demo_nodes

        if files:
            raise click.UsageError("the demo with several nodes shares letters of its own: give no files")
        ctx.exit(demo_nodes.run(nodes, as_json=session.json))
    from walytis_vault.demo import run

    ctx.exit(run(list(files), as_json=session.json))


COMMANDS = (init, serve, status, audit, replay, demo)
