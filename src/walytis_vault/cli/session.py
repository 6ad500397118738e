"""What one invocation carries: which home, which form of output; and the command class that accepts both anywhere.

`--home` and `--json` may stand before or after the sub-command; the one that stands last wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from walytis_vault.client import Client

HOME_VARIABLE = "WALYTIS_VAULT_HOME"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Session:
    """The options that all commands share."""

    home_option: Path | None = None
    json: bool = False

    @property
    def home(self) -> Path:
        """`--home`, else $WALYTIS_VAULT_HOME, else the platform's data folder."""
        if self.home_option is not None:
            return self.home_option
        if named := os.environ.get(HOME_VARIABLE):
            return Path(named)
        from platformdirs import user_data_path

        return user_data_path("walytis-vault", appauthor=False)

    def client(self, timeout: float = 30.0) -> Client:
        """A client of the node that serves the home; a context manager.

        Args:
            timeout: seconds that each request may take.
        """
        from walytis_vault.client import Client

        return Client(self.home, timeout=timeout)


def _set_home(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    session = ctx.ensure_object(Session)
    if value is not None:
        session.home_option = value


def _set_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    session = ctx.ensure_object(Session)
    session.json = session.json or value


def common_options() -> list[click.Parameter]:
    """Fresh `--home` and `--json` options that write into the `Session`."""
    return [
        click.Option(
            ["--home"],
            type=click.Path(path_type=Path),
            callback=_set_home,
            expose_value=False,
            metavar="DIR",
            help=f"The vault's folder (default: ${HOME_VARIABLE}, then the platform's data folder).",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            callback=_set_json,
            expose_value=False,
            help="Print JSON: one document, or one per line when following.",
        ),
    ]


class VaultCommand(click.Command):
    """A command that takes the common options as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(common_options())


class VaultGroup(click.Group):
    """A group of commands that takes the common options, and lists its commands in their own order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})  # no command is wrong usage, in one line
        self.params.extend(common_options())

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """The commands in the order in which a person meets them, not by the alphabet."""
        return list(self.commands)


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command; it gets the `Session` as its first argument."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        return click.command(name, cls=VaultCommand)(click.make_pass_decorator(Session, ensure=True)(function))

    return decorate


def timeout_option(default: float) -> Callable[[F], F]:
    """The `--timeout` option."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0.001),
        default=default,
        metavar="SECONDS",
        help=f"How long to wait without progress (default: {default:g}).",
    )
