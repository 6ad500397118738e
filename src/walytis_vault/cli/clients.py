"""Commands about programs that may use the vault: client add, client list, client revoke.

They work on the home's own files, so that they need no node; a running one takes notice. A client's key file is a
bearer secret: whoever has it can use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from walytis_vault.cli.output import Column, emit, table
from walytis_vault.cli.session import Session, VaultGroup, command

VERBS = ("read", "publish", "forget", "admin")


def _bus_folder(session: Session) -> Path:
    """Where the home keeps its client keys. Raises MisuseError where no vault is."""
    from walytis_vault.adapters.system import OsFileSystem
    from walytis_vault.home import Home

    home = Home(session.home, OsFileSystem())
    home.config()
    return home.bus


@command("add")
@click.argument("name")
@click.option("--verbs", default="read", show_default=True, help=f"Some of {','.join(VERBS)}, with commas between.")
def add(session: Session, name: str, verbs: str) -> None:
    """Make a key for a program, and print the path of its file. Give that file to the program alone."""
    from walytis_vault.bus.security import add_client

    wanted: Any = [verb.strip() for verb in verbs.split(",")]
    file = add_client(_bus_folder(session), name, wanted)
    if session.json:
        emit({"name": name, "verbs": wanted, "key": str(file)})
    else:
        click.echo(str(file))


@command("list")
def list_keys(session: Session) -> None:
    """List the keys, and what each may do."""
    from walytis_vault.bus.security import list_clients

    rows = [
        {"name": entry.name, "verbs": list(entry.verbs), "public_key": entry.public_key}
        for entry in list_clients(_bus_folder(session))
    ]
    if session.json:
        emit(rows)
    else:
        table(
            rows,
            (
                Column("NAME", lambda r: r["name"]),
                Column("VERBS", lambda r: ",".join(r["verbs"])),
                Column("KEY", lambda r: r["public_key"]),
            ),
        )


@command("revoke")
@click.argument("name")
def revoke(session: Session, name: str) -> None:
    """Take a key back: its connections are cut, and it opens none any more."""
    from walytis_vault.bus.security import revoke_client

    revoke_client(_bus_folder(session), name)
    if session.json:
        emit({"name": name})


client = VaultGroup(
    "client",
    commands=[add, list_keys, revoke],
    help="Keys for programs: which of them may connect to the node, and what each may do.",
)

COMMANDS = (client,)
