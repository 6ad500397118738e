"""Commands about one content: publish, get, revise, retract, restore.

stdout carries the result and nothing else: the id on its first line, or the content's own bytes.
"""

from __future__ import annotations

import mimetypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from walytis_vault.cli.output import emit, printable, progress
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.several import named_files, publish_all, regular_file
from walytis_vault.cli.when import read_when
from walytis_vault.domain.errors import MisuseError

if TYPE_CHECKING:
    from walytis_vault.bus.messages import Published
    from walytis_vault.client import Client

IDLE_SECONDS = 60.0
"""A transfer may take as long as it moves; so long it may stand still."""
F = TypeVar("F", bound=Callable[..., Any])
STDIN = "-"


def _source(file: str) -> Path | BinaryIO:
    """What to publish: a path, or this process's stdin for `-`.

    Raises:
        MisuseError: a directory, or nothing there.
    """
    if file == STDIN:
        return sys.stdin.buffer
    return regular_file(file)


def _described(function: F) -> F:
    """The options that say something about a content."""
    for option in reversed(
        (
            click.option("--name", help="What to call it (default: the file's name)."),
            click.option("--type", "media_type", metavar="TYPE", help="Media type (default: by the name)."),
            click.option("--label", "labels", multiple=True, help="A text to find it by; may be given several times."),
            click.option("--note", help="A note for its readers."),
            click.option(
                "--expires",
                metavar="WHEN",
                callback=read_when,
                help="When all forget it: 12h, 30d, or 2030-01-31T12:00:00Z.",
            ),
            timeout_option(IDLE_SECONDS),
        )
    ):
        function = option(function)
    return function


def _publish(session: Session, file: str, *, revises: str | None, timeout: float, **said: Any) -> None:
    data = _source(file)
    label = said["name"] or (data.name if isinstance(data, Path) else "stdin")
    with progress(f"publish {label}") as watch, session.client(timeout) as client:
        if revises is not None:
            said = _inherited(client, revises, said, isinstance(data, Path))
        if said["media_type"] is None and isinstance(data, Path):
            said["media_type"] = mimetypes.guess_type(data.name)[0]
        receipt = client.publish(data, revises=revises, progress=watch, **said)
    if session.json:
        emit(receipt)
    else:
        click.echo(receipt.content_id)


def _inherited(client: Client, revises: str, said: dict[str, Any], is_file: bool) -> dict[str, Any]:
    """A revision is called and labelled as what it revises, unless something else is said."""
    client.wait_for(client.status().position)
    rows = client.query("catalogue", content_id=revises)
    if not rows:
        return said  # the node knows best what is wrong with this id
    said = {**said, "labels": said["labels"] or rows[0].labels or ()}
    if not is_file:
        said |= {"name": said["name"] or rows[0].name, "media_type": said["media_type"] or rows[0].media_type}
    return said


@command("publish")
@click.argument("files", metavar="FILE|-...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Take all files in directories, named DIRECTORY/…/FILE.")
@_described
def publish(session: Session, files: tuple[str, ...], recursive: bool, **said: Any) -> None:
    """Put files, or stdin, into the vault and print the content id; of several files a line each: id and file.

    Name, type, labels and note are sealed with the content. When this returns, the content is on disk and its event
    is on the chain. Links in directories are left out.
    """
    if len(files) > 1 or (recursive and Path(files[0]).is_dir()):
        _publish_several(session, files, recursive, **said)
    else:
        _publish(session, files[0], revises=None, **said)


def _publish_several(session: Session, files: tuple[str, ...], recursive: bool, *, timeout: float, **said: Any) -> None:
    if said["name"] is not None:
        raise click.UsageError("--name is for one file: several are called as they are")
    if STDIN in files:
        raise click.UsageError("- (stdin) is published alone")
    named = named_files(files, recursive=recursive)

    def show(path: Path, receipt: Published) -> None:
        file = os.fsencode(path).decode(errors="replace")  # a name on disk need not be text
        if session.json:
            emit({"content_id": receipt.content_id, "position": receipt.position, "file": file})
        else:
            click.echo(f"{receipt.content_id}  {printable(file)}")

    alone = not sys.stdout.isatty()  # lines that come meanwhile would tear a progress bar on the same terminal apart
    with progress(f"publish {len(named)} files", wanted=alone) as watch, session.client(timeout) as client:
        publish_all(client, named, said, show, watch)


@command("revise")
@click.argument("content_id", metavar="ID")
@click.argument("file", metavar="FILE|-")
@_described
def revise(session: Session, content_id: str, file: str, **said: Any) -> None:
    """Publish a new version of an own content; the history stays readable. Labels stay unless others are given."""
    _publish(session, file, revises=content_id, **said)


@command("get")
@click.argument("content_id", metavar="ID")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE, which appears when it is complete.")
@timeout_option(IDLE_SECONDS)
def get(session: Session, content_id: str, output: str | None, timeout: float) -> None:
    """Write a content to stdout, or to a file."""
    target: Path | BinaryIO = sys.stdout.buffer if output in (None, STDIN) else Path(str(output))
    if isinstance(target, Path) and target.is_dir():
        raise MisuseError(f"{target} is a directory: name the file that is to be written")
    quiet_screen = isinstance(target, Path) or not sys.stdout.isatty()
    with progress(f"get {content_id[:8]}", wanted=quiet_screen) as watch, session.client(timeout) as client:
        client.request(content_id, to=target, progress=watch)
    if not isinstance(target, Path):
        target.flush()
    elif session.json:
        emit({"content_id": content_id.lower(), "path": str(target), "size": target.stat().st_size})


@command("retract")
@click.argument("content_id", metavar="ID")
@timeout_option(30.0)
def retract(session: Session, content_id: str, timeout: float) -> None:
    """Hide an own content from the views. Nothing is erased: `forget` does that."""
    with session.client(timeout) as client:
        position = client.retract(content_id)
    if session.json:
        emit({"content_id": content_id.lower(), "position": position})


@command("restore")
@click.argument("what", metavar="ID|DIR")
@click.option("--passphrase-file", type=click.Path(path_type=Path), metavar="FILE", help="DIR: what opens the backup.")
@click.option("--alone", is_flag=True, help="DIR: let its node serve even if no other member's node can be heard.")
@timeout_option(30.0)
def restore(session: Session, what: str, passphrase_file: Path | None, alone: bool, timeout: float) -> None:
    """Show an own retracted content again; or, given a folder, make a new home of the backup in it.

    32 hex digits are a content; a folder with such a name is given as ./NAME. What was forgotten since the backup was
    taken is forgotten again, before anything of it can be served.
    """
    if not _is_id(what):
        from walytis_vault.cli.backups import restore_from

        restore_from(session, Path(what), passphrase_file, alone=alone)
        return
    if passphrase_file is not None or alone:
        raise click.UsageError("--passphrase-file and --alone belong to a backup's folder, not to a content")
    with session.client(timeout) as client:
        position = client.restore(what)
    if session.json:
        emit({"content_id": what.lower(), "position": position})


def _is_id(text: str) -> bool:
    return len(text) == 32 and all(c in "0123456789abcdefABCDEF" for c in text)


COMMANDS = (publish, get, revise, retract, restore)
