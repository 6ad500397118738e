"""What an exchange with the node is to the link that carries it, and how one ends."""

from __future__ import annotations

from typing import Protocol

from walytis_vault.bus import turns
from walytis_vault.bus.protocol import FAILURE, Failure, Header, decode
from walytis_vault.domain.errors import MisuseError, VaultError


class ClosedError(MisuseError):
    """The client was closed. To callers it is a MisuseError."""


class Exchange(Protocol):
    """Something under way with the node. Its methods run on the link's thread."""

    id: bytes
    lane: turns.Kind
    """With which others it takes turns when many are under way."""
    sent: bool
    """Whether the node may have heard of it."""
    began: float
    """Monotonic seconds."""

    def on_connected(self) -> None:
        """There is a connection, and the node knows nothing of this exchange on it: send (again)."""

    def on_message(self, message: Header) -> None:
        """A message of this exchange. May raise UntrustedInputError."""

    def on_bulk(self, message: Header) -> None:
        """A message of this exchange's id from the bulk socket. May raise UntrustedInputError."""

    def on_tick(self, now: float) -> None:
        """Repeat or give up what takes too long."""

    def fail(self, error: VaultError) -> None:
        """It has ended with an error."""


def reported(message: Header) -> Failure:
    """The body of an ERROR."""
    return decode(FAILURE, message.body)
