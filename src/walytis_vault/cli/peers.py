"""Commands about members: invite, join, members, remove.

`join` opens a home itself, like `init`. A code is a secret for one use: `invite` prints it alone, so that it can be
piped to where it is safe; `join -` reads it from stdin, so that it need not stand in a shell's history.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import click

from walytis_vault.cli.output import Column, emit, fields, moment, short_did, table
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.vault import NETWORKS, passphrase_option, read_passphrase
from walytis_vault.cli.when import read_when

CODE_LIMIT = 16 << 10
"""Characters of a code."""

MEMBER_COLUMNS = (
    Column("DID", lambda r: r["did"]),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("DEVICES", lambda r: len(r["devices"]), right=True, from_width=100),
    Column("SINCE", lambda r: moment(r["time"]), from_width=120),
    Column("ADMITTED BY", lambda r: "founder" if r["founder"] else short_did(r["admitted_by"]), from_width=140),
)


@command("invite")
@click.option(
    "--expires", callback=read_when, default="24h", show_default=True, metavar="WHEN", help="How long it is good."
)
@timeout_option(120.0)
def invite(session: Session, expires: dt.timedelta | dt.datetime, timeout: float) -> None:
    """Make a one-use code with which somebody can join this vault. Whoever has it gets in: keep it secret."""
    with session.client(timeout) as client:
        code = client.invite(expires=expires)
    if session.json:
        emit({"code": code})
    else:
        click.echo(code)


@command("join")
@click.argument("code", metavar="CODE|-")
@click.option("--name", default="vault", show_default=True, help="What the vault is called on this machine.")
@passphrase_option
@click.option("--network", type=NETWORKS, default="loopback", show_default=True, help="Whom the node talks to.")
def join(session: Session, code: str, name: str, passphrase_file: Path | None, network: str) -> None:
    """Join the vault that CODE invites to, in the home folder. The inviter's node must be running.

    When it was interrupted, the same command goes on where it ended.
    """
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    if code == "-":
        code = sys.stdin.read(CODE_LIMIT + 1)
    from walytis_vault.node import join_vault

    home = session.home.absolute()
    made = join_vault(
        home,
        code,
        name=name,
        passphrase=passphrase,
        network=network,
        on_progress=lambda step: click.echo(f"{step} …", err=True),
    )
    if session.json:
        emit({"vault_id": made.vault_id, "did": made.did, "home": str(home)})
        return
    fields([("vault", made.vault_id), ("you", made.did), ("home", home)])


@command("members")
@timeout_option(60.0)
def members(session: Session, timeout: float) -> None:
    """List the members and their devices."""
    import msgspec

    with session.client(timeout) as client:
        rows = client.members()
    if session.json:
        emit(rows)
    else:
        table([msgspec.to_builtins(row) for row in rows], MEMBER_COLUMNS)


@command("remove")
@click.argument("did", metavar="DID")
@timeout_option(120.0)
def remove(session: Session, did: str, timeout: float) -> None:
    """Remove a member, for ever: its node gets nothing more, and nothing that it makes from now on counts."""
    with session.client(timeout) as client:
        position = client.remove(did)
    if session.json:
        emit({"position": position})
    else:
        click.echo(f"removed {short_did(did)}")


COMMANDS = (invite, join, members, remove)
