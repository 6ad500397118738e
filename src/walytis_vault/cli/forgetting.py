"""Commands about forgetting: forget, consent, refuse, withdraw.

Each prints the ballot's id and state; `ballots` shows the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from walytis_vault.cli.output import emit
from walytis_vault.cli.session import Session, command, timeout_option

if TYPE_CHECKING:
    from walytis_vault.bus.messages import BallotInfo

ballot_argument = click.argument("ballot_id", metavar="BALLOT")
reason_option = click.option("--reason", default="", help="Why; the members see it until the content is gone.")


def _show(session: Session, ballot: BallotInfo) -> None:
    if session.json:
        emit(ballot)
    else:
        click.echo(f"{ballot.ballot_id} {ballot.state}")


@command("forget")
@click.argument("content_ids", metavar="ID...", nargs=-1, required=True)
@reason_option
@timeout_option(60.0)
def forget(session: Session, content_ids: tuple[str, ...], reason: str, timeout: float) -> None:
    """Propose to forget contents, and all their revisions, for ever.

    It happens when all members consent; in a vault of one member it is done when this returns.
    """
    with session.client(timeout) as client:
        _show(session, client.forget(*content_ids, reason=reason))


@command("consent")
@ballot_argument
@timeout_option(60.0)
def consent(session: Session, ballot_id: str, timeout: float) -> None:
    """Agree to a proposal to forget."""
    with session.client(timeout) as client:
        _show(session, client.consent(ballot_id))


@command("refuse")
@ballot_argument
@reason_option
@timeout_option(60.0)
def refuse(session: Session, ballot_id: str, reason: str, timeout: float) -> None:
    """Say no to a proposal, which ends it."""
    with session.client(timeout) as client:
        _show(session, client.refuse(ballot_id, reason=reason))


@command("withdraw")
@ballot_argument
@timeout_option(60.0)
def withdraw(session: Session, ballot_id: str, timeout: float) -> None:
    """Take an own proposal back."""
    with session.client(timeout) as client:
        _show(session, client.withdraw(ballot_id))


COMMANDS = (forget, consent, refuse, withdraw)
