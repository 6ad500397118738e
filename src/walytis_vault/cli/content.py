"""Commands about one content: publish, get, revise, retract, restore.

stdout carries the result and nothing else: the id on its first line, or the content's own bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from walytis_vault.cli.output import emit, progress
from walytis_vault.cli.session import Session, command, timeout_option
from walytis_vault.cli.when import read_when
from walytis_vault.domain.errors import MisuseError

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
    path = Path(file)
    if path.is_dir():
        raise MisuseError(f"{file} is a directory: publish its files one by one, or an archive of it")
    if not path.exists():
        raise MisuseError(f"{file}: there is no such file")
    return path


def _described(function: F) -> F:
    """The options that say something about a content."""
    for option in reversed(
        (
            click.option("--name", help="What to call it (default: the file's name)."),
            click.option("--type", "media_type", metavar="TYPE", help="Media type, such as text/plain."),
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
        receipt = client.publish(data, revises=revises, progress=watch, **said)
    if session.json:
        emit(receipt)
    else:
        click.echo(receipt.content_id)


@command("publish")
@click.argument("file", metavar="FILE|-")
@_described
def publish(session: Session, file: str, **said: Any) -> None:
    """Put a file, or stdin, into the vault and print its content id.

    Name, type, labels and note are sealed with the content. When this returns, the content is on disk and its event
    is on the chain.
    """
    _publish(session, file, revises=None, **said)


@command("revise")
@click.argument("content_id", metavar="ID")
@click.argument("file", metavar="FILE|-")
@_described
def revise(session: Session, content_id: str, file: str, **said: Any) -> None:
    """Publish a new version of an own content; the history stays readable."""
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
@click.argument("content_id", metavar="ID")
@timeout_option(30.0)
def restore(session: Session, content_id: str, timeout: float) -> None:
    """Show an own retracted content again."""
    with session.client(timeout) as client:
        position = client.restore(content_id)
    if session.json:
        emit({"content_id": content_id.lower(), "position": position})


COMMANDS = (publish, get, revise, retract, restore)
