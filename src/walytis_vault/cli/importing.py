"""The command `import-offchain`: from the system that this one replaces."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from walytis_vault.cli.output import emit, printable, progress, size
from walytis_vault.cli.session import Session, command, timeout_option

PATH = click.Path(path_type=Path)


@command("import-offchain")
@click.argument("source", metavar="SOURCE", type=PATH)
@click.option(
    "--key", required=True, type=PATH, metavar="FILE", help="The key that opens the group's key store (JSON)."
)
@click.option("--group-keys", type=PATH, metavar="FILE", help="The group's key store (default: group.json in SOURCE).")
@click.option("--blocks", type=PATH, metavar="DIR", help="Walytis's folder of the chain, for the authors.")
@click.option("--dry-run", is_flag=True, help="Show what would be imported; publish nothing.")
@timeout_option(60.0)
def import_offchain(
    session: Session,
    source: Path,
    key: Path,
    group_keys: Path | None,
    blocks: Path | None,
    dry_run: bool,
    timeout: float,
) -> None:
    """Bring the readable blocks of a walytis_offchain 0.5.4 store into the vault.

    You publish them; original author and time go into the sealed note, as claims. Repeating it imports what is new
    only, and nothing that was forgotten. --json prints one line for each block.
    """
    from walytis_vault.offchain import import_offchain as run

    counts: Counter[str] = Counter()
    done = 0
    with progress(f"import {source}", wanted=not session.json) as watch, session.client(timeout) as client:
        for block in run(client, source, key=key, group_keys=group_keys, blocks=blocks, dry_run=dry_run):
            counts[block.outcome] += 1
            done += block.size or 0
            if watch is not None:
                watch(done, None)
            if session.json:
                emit(block)
            elif block.outcome != "there":
                line = f"{block.outcome:<12}  {block.content_id or '-':<32}  {size(block.size):>9}  {block.block}"
                click.echo(printable(line + (f"  {block.problem}" if block.problem else "")))
    if not session.json:
        click.echo(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "no blocks")


COMMANDS = (import_offchain,)
