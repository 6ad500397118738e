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
from typing import Any

import click

from walytis_vault.cli.failure import complain
from walytis_vault.cli.output import emit, fields, printable, short_did
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.domain.errors import LockedError, MisuseError

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
def init(session: Session, name: str, passphrase_file: Path | None, network: str) -> None:
    """Make a new vault in the home folder.

    Its master key is kept in a key file that only you can read, or under a passphrase with --passphrase-file.
    """
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    from walytis_vault.node import create_vault

    home = session.home.absolute()
    made = create_vault(home, name=name, passphrase=passphrase, network=network)
    if session.json:
        emit({"vault_id": made.vault_id, "did": made.did, "home": str(home)})
        return
    fields([("vault", made.vault_id), ("you", made.did), ("home", home)])


@command("serve")
@passphrase_option
@click.option("--network", type=NETWORKS, help="Instead of what `init` was told.")
@click.option("--until-eof", is_flag=True, help="End when stdin is closed too: for programs that start a node.")
def serve(session: Session, passphrase_file: Path | None, network: str | None, until_eof: bool) -> None:
    """Run the vault's node in the foreground, until Ctrl-C or SIGTERM.

    Writes `ready ENDPOINT` to stderr when requests are answered.
    """
    if until_eof:
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    try:
        code = _serve(session.home, passphrase, network)
    except Exception as error:
        code = complain(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the embedded libraries keep threads that would hold the process for many seconds


def _serve(home: Path, passphrase: str | None, network: str | None) -> int:
    from walytis_vault import node

    def ready(endpoint: str) -> None:
        click.echo(f"ready {endpoint}", err=True)

    try:
        return node.serve(home, passphrase=passphrase, network=network, on_ready=ready)
    except LockedError:
        if passphrase is not None or not sys.stdin.isatty():
            raise
    passphrase = click.prompt("Passphrase", hide_input=True, err=True)
    return node.serve(home, passphrase=passphrase, network=network, on_ready=ready)


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
        ("state", "locked" if state.locked else "open"),
        ("network", state.network),
        ("position", state.position),
        ("peers", ", ".join(short_did(p) for p in state.peers) or "none"),
        ("version", state.version),
    ]
    pairs += [(f"view {name}", f"at {view.position}, hash {view.hash[:16]}") for name, view in state.views.items()]
    pairs += [(f"blocks {verdict}", count) for verdict, count in state.blocks.items()]
    pairs += [(name.replace("_", " "), _plain(value)) for name, value in state.details.items()]
    fields(pairs)


def _plain(value: object) -> object:
    """A mapping as a line of text; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
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
    contents, ballots = report["contents"], report["ballots"]
    stored = sum(1 for c in contents if c["stored_here"])
    erased = sum(1 for c in contents if c["erased_here"])
    fields(
        [
            ("batches", f"{report['batches']} read, {report['void_batches']} void, {len(report['forks'])} forks"),
            ("events", report["events"]),
            ("blocks", _plain(report["blocks"])),
            ("contents", f"{len(contents)}: {stored} stored here, {erased} erased"),
            ("stored bytes", "read and checked" if report["data_read"] else "not read (--read-data does)"),
            ("ballots", f"{len(ballots)}: {sum(1 for b in ballots if b['state'] == 'open')} open"),
        ]
    )
    for block in report["refused_blocks"]:
        click.echo(f"refused block {block['block']}: {printable(block['reason'])}")
    for finding in report["findings"]:
        click.echo(f"PROBLEM batch {printable(finding['batch_id'])}: {printable(finding['reason'])}")
    for content in report["damaged"]:
        click.echo(f"PROBLEM content {content['content_id']}: {printable(content['problem'])}")
    click.secho("sound" if report["ok"] else "NOT SOUND", fg="green" if report["ok"] else "red", bold=True)


@command("replay")
@click.argument("view", required=False)
@timeout_option(LONG_WORK_SECONDS)
def replay(session: Session, view: str | None, timeout: float) -> None:
    """Drop a view (or all of them) and build it again from the log."""
    with session.client(timeout) as client:
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
