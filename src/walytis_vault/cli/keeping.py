"""Commands about this node's own copy: drop, lock, unlock, passphrase.

A passphrase is read from a file or typed at a terminal, never from the command line, where other users see it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from walytis_vault.cli.output import emit, size
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.vault import passphrase_option, read_passphrase
from walytis_vault.domain.errors import MisuseError, NoNodeError


@command("drop")
@click.argument("content_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also what no other connected node is known to hold: it may be lost.")
@timeout_option(120.0)
def drop(session: Session, content_ids: tuple[str, ...], force: bool, timeout: float) -> None:
    """Free the space of contents on this node alone. Not forgetting: they can be fetched again with `get`."""
    with session.client(timeout) as client:
        done = client.drop(*content_ids, force=force)
    if session.json:
        emit(done)
    else:
        click.echo(f"dropped {len(done.contents)}, {size(done.freed)} freed")


@command("lock")
@timeout_option(30.0)
def lock(session: Session, timeout: float) -> None:
    """Put the node's keys out of reach: nothing is read or published until `unlock`. Forgetting still works."""
    with session.client(timeout) as client:
        client.lock()
    if session.json:
        emit({"locked": True})


@command("unlock")
@passphrase_option
@timeout_option(30.0)
def unlock(session: Session, passphrase_file: Path | None, timeout: float) -> None:
    """Give a locked node its keys back."""
    passphrase = _passphrase(passphrase_file, "Passphrase", "--passphrase-file")
    with session.client(timeout) as client:
        client.unlock(passphrase)
    if session.json:
        emit({"locked": False})


@command("passphrase")
@passphrase_option
@click.option(
    "--new-passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the new passphrase from the first line of FILE.",
)
@click.option("--to-key-file", is_flag=True, help="From now on a key file opens the vault, and no passphrase.")
@timeout_option(30.0)
def passphrase(
    session: Session, passphrase_file: Path | None, new_passphrase_file: Path | None, to_key_file: bool, timeout: float
) -> None:
    """Change the vault's passphrase, or give it one. No content is encrypted anew; the node may run or not."""
    if to_key_file and new_passphrase_file is not None:
        raise click.UsageError("--to-key-file and --new-passphrase-file exclude each other")
    from walytis_vault.adapters.storage.vault_keys import VaultKeys
    from walytis_vault.adapters.system import OsFileSystem
    from walytis_vault.home import Home

    fs = OsFileSystem()
    home = Home(session.home, fs)
    home.config()  # refuses a folder that holds no vault
    old = new = None
    if VaultKeys.needs_passphrase(home.keys, fs):
        old = _passphrase(passphrase_file, "Old passphrase", "--passphrase-file")
    elif passphrase_file is not None:
        raise MisuseError("this vault is opened by its key file: leave --passphrase-file out")
    if not to_key_file:
        new = _passphrase(new_passphrase_file, "New passphrase", "--new-passphrase-file", twice=True)
    try:
        with session.client(timeout) as client:
            client.change_passphrase(old, new)
    except NoNodeError:
        home.lock()  # so that no node starts meanwhile
        try:
            VaultKeys.open(home.keys, fs, old).change_passphrase(old, new)
        finally:
            home.release()
    if session.json:
        emit({"kind": "key-file" if new is None else "passphrase"})


def _passphrase(file: Path | None, prompt: str, option: str, *, twice: bool = False) -> str:
    if file is not None:
        return read_passphrase(file)
    if not sys.stdin.isatty():
        raise MisuseError(f"no terminal to ask for the passphrase: name a file with {option}")
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True))


COMMANDS = (drop, lock, unlock, passphrase)
