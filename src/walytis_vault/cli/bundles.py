"""Commands about the record as a file: export, verify.

`verify` needs no node, no vault and no keys.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, BinaryIO

import click

from walytis_vault.cli.output import emit, fields, moment, printable, progress, size
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.domain.errors import MisuseError

HEX32 = 64


@command("export")
@click.argument("file", metavar="FILE|-")
@timeout_option(600.0)
def export(session: Session, file: str, timeout: float) -> None:
    """Write the whole record to FILE: signed batches and public keys, no content, no secrets.

    FILE can be checked with `verify` on any machine. The root and the digest that are printed are what to compare
    it with: tell them on another way than the file.
    """
    if file == "-" and session.json:
        raise MisuseError("the bundle goes to stdout, so --json has no place there: name a file")
    target: Path | BinaryIO = sys.stdout.buffer if file == "-" else Path(file)
    with progress(f"export {file}", wanted=file != "-") as watch, session.client(timeout) as client:
        done = client.export(target, progress=watch)
    if file == "-":
        sys.stdout.buffer.flush()
    elif session.json:
        emit(done)
    else:
        fields(
            [
                ("vault", done.vault_id),
                ("root", done.root),
                ("digest", done.digest),
                ("batches", done.batches),
                ("size", size(done.size)),
            ]
        )


def _digest(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    if len(value) != HEX32 or any(c not in "0123456789abcdefABCDEF" for c in value):
        raise click.BadParameter("64 hex digits, as `export` prints them")
    return value.lower()


@command("verify")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--vault", metavar="ID", help="It must be a bundle of this vault.")
@click.option("--root", metavar="HEX", callback=_digest, help="It must begin with this founding batch.")
@click.option("--digest", metavar="HEX", callback=_digest, help="It must be this state of the vault, no other.")
@click.pass_context
def verify(
    ctx: click.Context, session: Session, file: Path, vault: str | None, root: str | None, digest: str | None
) -> None:
    """Check a bundle that `export` wrote. Needs no vault and no node. Exit code 1: something is wrong."""
    from walytis_vault.bundle.verify import Expected, verify_bundle

    total = file.stat().st_size if file.is_file() else None
    with progress(f"verify {file}") as watch:
        report = verify_bundle(
            file,
            Expected(vault_id=vault, root=root, digest=digest),
            lambda done: None if watch is None else watch(done, total),
        )
    if session.json:
        emit(report)
    else:
        _show(report, compared=bool(root))
    if not report["ok"]:
        ctx.exit(1)


def _show(report: dict[str, Any], *, compared: bool) -> None:
    pairs: list[tuple[str, object]] = [(name, report.get(name, "unknown")) for name in ("vault_id", "root", "digest")]
    if "batches" in report:
        exported = report["exported"]
        pairs += [
            ("exported", f"{moment(exported['time'])} by {exported['member'] or 'nobody who may'}"),
            ("batches", f"{report['batches']}: {report['void_batches']} void, {len(report['forks'])} forks"),
            ("events", report["events"]),
            ("members", sum(1 for m in report["members"] if not m["removed"])),
            ("contents", f"{report['contents_total']}: {report['contents_forgotten']} forgotten"),
            ("ballots", report["ballots_total"]),
        ]
    fields([(name.replace("_id", ""), value) for name, value in pairs])
    for line in report.get("odd", ()):
        click.echo(printable(line))
    for finding in report["findings"]:
        click.echo(f"PROBLEM line {finding['line']}: {printable(finding['reason'])}")
    if report["ok"] and not compared:
        click.echo("compare the root with the one that a member tells you (or give --root): anybody can found a vault")
    click.secho("sound" if report["ok"] else "NOT SOUND", fg="green" if report["ok"] else "red", bold=True)


COMMANDS = (export, verify)
