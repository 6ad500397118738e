"""Where segments come from: a bulk stream, or the holder's peer door when that has none.

Both take segments in the order in which they were asked for. What comes is not verified here.
"""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future
from typing import Final, Protocol

from walytis_vault.domain.errors import (
    ForgottenError,
    NotYetAvailableError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.ids import ContentId
from walytis_vault.peers import protocol as p
from walytis_vault.peers.bulk_link import BulkStream
from walytis_vault.peers.link import PeerLink, Replied, settle
from walytis_vault.peers.network import PeerNetwork

GRANT_S: Final = 5.0
SEGMENT_S: Final = 15.0
BULK_FROM: Final = 3
"""Segments from which a bulk stream pays (a count): to open one takes two round trips."""

_log = logging.getLogger(__name__)


class Source(Protocol):
    """One holder's segments of one content. One thread uses it; any thread may close it."""

    def ask(self, number: int) -> None:
        """Ask for a segment. Raises TransportError."""
        ...

    def take(self, size: int) -> bytes | memoryview:
        """The next one that was asked for; valid until the next call.

        Raises:
            TransportError, UntrustedInputError, NotYetAvailableError, ForgottenError.
        """
        ...

    def close(self) -> None:
        """End it; whoever waits in `take` need not be woken. Idempotent."""
        ...


class LinkSource:
    """Segments over the link to the peer door."""

    def __init__(self, link: PeerLink, content_id: ContentId) -> None:
        self._link, self._content_id = link, content_id
        self._asked: deque[Future[Replied]] = deque()

    def ask(self, number: int) -> None:
        """See `Source`."""
        ask = p.Segment(content_id=self._content_id, number=number)
        self._asked.append(self._link.send(ask, timeout=SEGMENT_S))

    def take(self, size: int) -> bytes:
        """See `Source`."""
        _, payload = settle(self._asked.popleft(), SEGMENT_S)
        if len(payload) != 1 or len(payload[0]) != size:
            raise UntrustedInputError("a peer's reply does not fit the request")
        return payload[0]

    def close(self) -> None:
        """See `Source`."""


def open_source(network: PeerNetwork, keys: DeviceKeys, link: PeerLink, content_id: ContentId, segments: int) -> Source:
    """The fastest way to a holder's segments.

    Args:
        segments: how many are wanted (a count).
    """
    if segments >= BULK_FROM:
        try:
            reply, _ = link.ask(p.Stream(content_id=content_id), timeout=GRANT_S)
            if not isinstance(reply, p.Streaming):
                raise UntrustedInputError("a peer's reply does not fit the request")
            return BulkStream(network.dial_bulk(keys), session=reply.session, key=reply.key)
        except (ForgottenError, NotYetAvailableError):
            raise
        except VaultError as e:
            # An older version, or too many at once: the link serves too, slower.
            _log.info("no bulk stream from %s: %s", keys.device, e)
    return LinkSource(link, content_id)
