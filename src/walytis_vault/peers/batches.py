"""What one node's log has beyond another's, and how the one that lacks it asks for it.

Batches that come this way are judged like those of the chain. Refuses nothing by itself: whoever asks is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.peers import protocol as p
from walytis_vault.peers.link import PeerLink


class Batches:
    """Any thread may call."""

    def __init__(self, log: VaultLog) -> None:
        """Bind to the log."""
        self._log = log

    def have(self) -> dict[str, int]:
        """Device -> number of its last batch here."""
        return self._log.index.last_numbers(self._devices())

    def lacks(self, have: p.Have) -> bool:
        """Whether somebody who has this has anything that is not here."""
        ours = self.have()
        return any(number > ours.get(device, 0) for device, number in have.items())

    def beyond(self, have: p.Have) -> tuple[list[bytes], bool]:
        """Batches that somebody lacks, causes first, as many as fit one message; and whether there are more."""
        return fitting(self._log.index.envelopes_beyond(have, self._devices(), p.PAYLOAD_FRAMES + 1))

    def pull(self, link: PeerLink, seconds: float, stopped: Callable[[], bool]) -> bool:
        """Ask for everything that the other has and we have not, in parts; whether some is left when time is up.

        Args:
            seconds: for all of it; the answer under way then may take as long again.
        Raises:
            BusyError: one of the two nodes has no time. StorageError. UntrustedInputError, TransportError,
            TimedOutError: the other does not answer as it should.
        """
        have, until = self.have(), time.monotonic() + seconds
        while not stopped():
            first, rest = p.have_parts(have)
            reply, envelopes = link.ask(p.Pull(have=first), rest, timeout=seconds)
            if not isinstance(reply, p.Batches):
                raise UntrustedInputError("a peer's reply does not fit the request")
            if envelopes:
                self._log.reconciler.accept(envelopes)
            before, have = have, self.have()
            if not reply.more or have == before:
                return False
            if time.monotonic() > until:
                return True
        return False

    def _devices(self) -> set[str]:
        return {k.device for k in self._log.membership().keys.values()}


def fitting(envelopes: Sequence[bytes]) -> tuple[list[bytes], bool]:
    """As many as one message holds, at least one; and whether any are left."""
    size, count = 0, 0
    for envelope in envelopes[: p.PAYLOAD_FRAMES]:
        size += len(envelope)
        if count and size > p.BATCH_BYTES:
            break
        count += 1
    return list(envelopes[:count]), count < len(envelopes)
