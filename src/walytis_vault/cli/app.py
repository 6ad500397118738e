"""The list of commands, and the one place where whatever goes wrong becomes an exit code.

The form of the messages is in `failure`, that of the results in `output`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from walytis_vault.cli import (
    backups,
    bundles,
    clients,
    content,
    events,
    forgetting,
    importing,
    keeping,
    peers,
    vault,
    views,
)
from walytis_vault.cli.failure import EXIT_BROKEN_PIPE, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED, complain
from walytis_vault.cli.session import VaultGroup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

COMMANDS: tuple[click.Command, ...] = (
    *vault.COMMANDS,
    *content.COMMANDS,
    *events.COMMANDS,
    *views.COMMANDS,
    *forgetting.COMMANDS,
    *keeping.COMMANDS,
    *bundles.COMMANDS,
    *backups.COMMANDS,
    *importing.COMMANDS,
    *peers.COMMANDS,
    *clients.COMMANDS,
)


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"walytis-vault {version('walytis-vault')}")
        except PackageNotFoundError:
            click.echo("walytis-vault (not installed: run from its sources)")
        ctx.exit()


def application() -> click.Group:
    """Build the command line. All options are declared here or in the commands' own modules."""
    return VaultGroup(
        name="walytis-vault",
        commands={c.name: c for c in COMMANDS if c.name},
        help="Encrypted content, shared by the members of one Walytis Identity, with a lasting record and real "
        "forgetting. `init` makes a vault, `serve` runs its node; the other commands talk to that node.",
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_version,
                help="Show the version and exit.",
            ),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def run(arguments: list[str]) -> int:
    """Run one command line; return the exit code."""
    with _ended_by_sigterm():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    stdout = sys.stdout
    try:
        code = application().main(arguments, prog_name="walytis-vault", standalone_mode=False)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except SystemExit as error:
        if sys.stdout is not stdout and error.code == EXIT_ERROR:  # click met a broken pipe, and replaced stdout
            return _reader_gone()
        raise
    except Exception as error:  # whatever it was: one line and an exit code
        return _reader_gone() if _of_broken_pipe(error) else complain(error)
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that files and sockets are closed on the way out."""
    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def _of_broken_pipe(error: BaseException) -> bool:
    """Whether the cause of it all is that nobody reads stdout any more."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BrokenPipeError):
        cause = cause.__cause__
    return cause is not None


def _reader_gone() -> int:
    # What is still buffered must not be written at exit, where Python would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE
