"""Commands that change who the members are: invite, join, remove.

`join` opens a home itself, like `init`. A code is a secret for one use: `invite` prints it alone, so that it can be
piped to where it is safe, and draws its QR code on the terminal's stderr; `join -` reads it from stdin, so that it
need not stand in a shell's history.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from walytis_vault.cli.output import Column, emit, fields, moment, short_did, table
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.vault import NETWORKS, passphrase_option, read_passphrase
from walytis_vault.cli.when import read_when

if TYPE_CHECKING:
    from walytis_vault.bus.messages import InvitationInfo

CODE_LIMIT = 16 << 10
"""Characters of a code."""
QR_BORDER = 2
"""Quiet modules around the QR code: fewer than the norm's 4, enough for cameras, and it fits 80 columns."""
INVITATIONS = (
    Column("ID", lambda r: r["invitation_id"]),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("FOR", lambda r: "own device" if r["own_device"] else "new member"),
    Column("EXPIRES", lambda r: moment(r["expires"])),
    Column("USED BY", lambda r: short_did(r["used_by"]), from_width=100),
)


@command("invite")
@click.option(
    "--expires", callback=read_when, default="24h", show_default=True, metavar="WHEN", help="How long it is good."
)
@click.option("--device", is_flag=True, help="For another device of yours, rather than for a new member.")
@click.option("--list", "listing", is_flag=True, help="Make none; list those that this node made.")
@click.option("--revoke", metavar="ID", help="Make none; let nobody in any more with this one.")
@timeout_option(120.0)
def invite(
    session: Session,
    expires: dt.timedelta | dt.datetime,
    device: bool,
    listing: bool,
    revoke: str | None,
    timeout: float,
) -> None:
    """Make a one-use code with which somebody can join this vault. Whoever has it gets in: keep it secret.

    Prints the code alone. On a terminal the code is shown as a QR code too.
    """
    if listing + (revoke is not None) + device > 1:
        raise click.UsageError("--device, --list and --revoke do not go together")
    with session.client(timeout) as client:
        if listing or revoke is not None:
            _show_invitations(session, client.invitations() if revoke is None else [client.revoke_invitation(revoke)])
            return
        code = client.invite(expires=expires, device=device)
    if session.json:
        emit({"code": code})
        return
    click.echo(code)
    if sys.stderr.isatty():
        click.echo(qr_text(code, os.get_terminal_size(sys.stderr.fileno()).columns), err=True)


def _show_invitations(session: Session, invitations: list[InvitationInfo]) -> None:
    import msgspec

    if session.json:
        emit(invitations)
    else:
        table([msgspec.to_builtins(i) for i in invitations], INVITATIONS)


def qr_text(code: str, columns: int) -> str:
    """A code as a QR code of half blocks, or why it is not shown.

    Args:
        columns: width of the terminal.
    """
    import segno

    symbol = segno.make(code, error="l", micro=False)
    wide = symbol.symbol_size(border=QR_BORDER)[0]
    if wide > columns:
        return f"(the QR code needs a terminal of {wide} columns; this one has {columns})"
    drawn = io.StringIO()
    symbol.terminal(drawn, border=QR_BORDER, compact=True)
    return drawn.getvalue().rstrip("\n")


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


@command("remove")
@click.argument("did", metavar="DID")
@click.option("--reason", default="", help="Why. It is recorded for ever, and not sealed.")
@click.option("--device", is_flag=True, help="Only the device of this DID, where it is a member's too.")
@timeout_option(120.0)
def remove(session: Session, did: str, reason: str, device: bool, timeout: float) -> None:
    """Remove a member, or one device of a member, for ever.

    DID is as `members` shows it; the part behind the `#` is enough. It gets nothing more, and nothing that it makes
    from now on counts. Who may do this was laid down at `init`; the other devices of a member may always remove one
    that was lost.
    """
    with session.client(timeout) as client:
        position = client.remove(did, reason=reason, device=device)
    if session.json:
        emit({"position": position})
    else:
        click.echo(f"removed {short_did(did)}")


COMMANDS = (invite, join, remove)
