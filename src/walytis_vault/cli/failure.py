"""How a failure is told: one printable line on stderr, and an exit code.

Refuses to show a traceback for anything that a user can cause; `WALYTIS_VAULT_DEBUG=1` shows it all the same.
"""

from __future__ import annotations

import contextlib
import os

import click

from walytis_vault.cli.output import one_line
from walytis_vault.domain.errors import VaultError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


def complain(error: BaseException) -> int:
    """Tell what went wrong; return the exit code."""
    if os.environ.get("WALYTIS_VAULT_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "walytis-vault"
        _say(f"{command}: {one_line(error.format_message())} (try: {command} --help)")
        return EXIT_USAGE
    _say(f"walytis-vault: {one_line(_sentence(error)) or type(error).__name__}")
    return EXIT_ERROR


def _sentence(error: BaseException) -> str:
    if isinstance(error, VaultError):
        return str(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror or error}" if error.filename else str(error.strerror or error)
    return f"unexpected {type(error).__name__}: {error} (WALYTIS_VAULT_DEBUG=1 shows where)"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # whoever read stderr is gone
        click.echo(line, err=True)
