"""The command `backup`, and what `restore DIR` does.

The node takes the backup; restoring works on files alone, with no node.
"""

from __future__ import annotations

from pathlib import Path

import click

from walytis_vault.cli.output import emit, fields, progress, size
from walytis_vault.cli.session import Session, command, timeout_option

DAY_SECONDS = 86_400.0


@command("backup")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Seal the backup with the passphrase in the first line of FILE.",
)
@click.option(
    "--with-key-file", is_flag=True, help="Put the vault's key file into the backup: whoever has it, reads it."
)
@timeout_option(DAY_SECONDS)
def backup(session: Session, folder: Path, passphrase_file: Path | None, with_key_file: bool, timeout: float) -> None:
    """Write a backup of the home into DIR, while the node runs.

    Again into the same DIR it copies what is new only. A vault with a passphrase stays sealed with it; one with a key
    file needs --passphrase-file or --with-key-file. `restore DIR` makes a home of it.
    """
    from walytis_vault.cli.vault import read_passphrase

    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    with session.client(timeout) as client:
        done = client.backup(folder, passphrase=passphrase, with_key_file=with_key_file, timeout=timeout)
    if session.json:
        emit(done)
        return
    fields(
        [
            ("folder", done.folder),
            ("position", done.position),
            ("contents", done.contents),
            ("files", done.files),
            ("size", f"{size(done.size)}, of which {size(done.copied)} are new"),
        ]
    )


def restore_from(session: Session, folder: Path, passphrase_file: Path | None, *, alone: bool) -> None:
    """Make the session's home of a backup."""
    from walytis_vault.backup.restore import restore_backup
    from walytis_vault.cli.vault import read_passphrase

    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    with progress(f"restore {folder}") as watch:
        done = restore_backup(
            folder.absolute(),
            session.home.absolute(),
            passphrase=passphrase,
            alone=alone,
            progress=lambda now, total: None if watch is None else watch(now, total),
        )
    if session.json:
        emit(done)
        return
    fields(
        [
            ("vault", done.vault_id),
            ("home", done.home),
            ("position", done.position),
            ("contents", f"{done.contents}, of which {done.forgotten} were forgotten since and again now"),
        ]
    )


COMMANDS = (backup,)
