"""The other end of a bulk door: asks for segments, several ahead, and takes them in order.

One connection for one content and one holder; the session came over the authenticated link. What is taken is
still judged by the root on the log. A dead holder shows as an ended stream, a silent one after a bounded wait.
"""

from __future__ import annotations

import socket
from typing import Final

from walytis_vault.adapters.exchange.sealed_stream import SealedStream, hello, wait_at_most
from walytis_vault.domain.errors import NotYetAvailableError, TransportError, UntrustedInputError
from walytis_vault.domain.limits import SEGMENT_BYTES
from walytis_vault.peers.bulk_door import ASK, NOT_HERE, NUMBER_BYTES, SEGMENT

CONNECT_S: Final = 5.0
SILENT_S: Final = 10.0
"""A holder that sends nothing for so long counts as gone."""


class BulkStream:
    """One stream. One thread uses it; any thread may close it."""

    def __init__(self, port: int, *, session: bytes, key: bytes) -> None:
        """Connect to a local port that leads to the holder's bulk door. Raises TransportError."""
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wait_at_most(connection, SILENT_S)
            connection.sendall(hello(session, key))
        except OSError as e:
            raise TransportError(f"the other node's bulk door cannot be reached: {e}") from e
        self._stream = SealedStream(connection, session=session, key=key, longest=SEGMENT_BYTES, dials=True)

    def ask(self, number: int) -> None:
        """Ask for a segment; it comes after those that were asked for before. Raises TransportError."""
        self._stream.send(ASK, number.to_bytes(NUMBER_BYTES))

    def take(self, size: int) -> memoryview:
        """The next segment, of `size` bytes; valid until the next call.

        Raises:
            NotYetAvailableError: the holder has it no more, or not for us. TransportError. UntrustedInputError.
        """
        kind, data = self._stream.receive(size, empty_kinds=(NOT_HERE,))
        if kind == NOT_HERE:
            raise NotYetAvailableError("the other node does not hand this content out any more")
        if kind != SEGMENT:
            raise UntrustedInputError("a peer sent a frame of an unknown kind")
        return data

    def close(self) -> None:
        """End it. Idempotent."""
        self._stream.close()
