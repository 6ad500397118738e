"""The bulk door: hands segments of ciphertext to devices that were given a session at the peer door.

A plain TCP socket of 127.0.0.1 behind a tunnel of its own, because CURVE costs more than everything else on the
way (docs/adr/0012-bulk-between-peers.md). Without a session's key nobody gets a byte; each session serves one
device, one content, one connection, and every segment is asked for at the desk again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from walytis_vault.adapters.exchange.sealed_stream import (
    HELLO_BYTES,
    SESSION_BYTES,
    SealedStream,
    check_hello,
    new_session,
    read_within,
    shut,
    wait_at_most,
)
from walytis_vault.domain.errors import BusyError, TransportError, UntrustedInputError, VaultError
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.limits import SEGMENT_BYTES

ASK: Final = 1
"""From the dialler: a segment's number, 8 bytes, big-endian."""
SEGMENT: Final = 1
"""From the door: the segment."""
NOT_HERE: Final = 2
"""From the door, without data: it is not here, or not for you; the peer door says why. The stream ends."""
NUMBER_BYTES: Final = 8
HELLO_S: Final = 5.0
"""Time for the hello."""
IDLE_S: Final = 20.0
STRANGERS: Final = 16
"""Connections that have not said a right hello (a count); more are closed at once."""
SESSIONS: Final = 64
"""Sessions that are offered or open (a count)."""
SESSIONS_OF_ONE: Final = 16
"""The same for one device."""
OFFER_S: Final = 10.0
"""How long a session waits for its connection."""

_log = logging.getLogger(__name__)
ReadSegment = Callable[[bytes, ContentId, int], bytes]
"""(CURVE key of the device, content, number) -> ciphertext. Raises VaultError: not for this device, or not here."""


class _Session(msgspec.Struct):
    id: bytes
    key: bytes
    device: bytes
    """CURVE key of the device that it was made for."""
    content_id: ContentId
    until: float
    open: bool = False


class BulkDoor:
    """Serves until closed."""

    def __init__(self, read: ReadSegment) -> None:
        """Bind to a free port of 127.0.0.1. Raises TransportError."""
        self._read = read
        self._lock = threading.Lock()
        self._sessions: dict[bytes, _Session] = {}
        self._connections: set[socket.socket] = set()
        self._strangers = 0
        self._closing, self._pause = False, threading.Event()
        try:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=STRANGERS)
        except OSError as e:
            raise TransportError(f"the bulk door cannot be opened: {e}") from e
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="bulk-door", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """Stop, and end all connections. Bounded; idempotent."""
        self._closing = True
        self._pause.set()
        shut(self._listener)
        with self._lock:
            connections = list(self._connections)
            self._sessions.clear()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def offer(self, device: bytes, content_id: ContentId) -> tuple[bytes, bytes]:
        """A session, id and key, for a device that may have this content; both go to it over the peer door.

        Raises:
            BusyError: too many are open.
        """
        session, key = new_session()
        with self._lock:
            now = time.monotonic()
            for late in [s for s in self._sessions.values() if not s.open and s.until < now]:
                del self._sessions[late.id]
            own = sum(1 for s in self._sessions.values() if s.device == device)
            if len(self._sessions) >= SESSIONS or own >= SESSIONS_OF_ONE:
                raise BusyError("too many bulk streams at once")
            self._sessions[session] = _Session(session, key, device, content_id, now + OFFER_S)
        return session, key

    # -- connections --------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError as e:
                if not self._closing:
                    _log.warning("the bulk door cannot accept: %s", e)
                    self._pause.wait(1.0)
                continue
            with self._lock:
                full = self._closing or self._strangers >= STRANGERS
                if not full:
                    self._strangers += 1
                    self._connections.add(connection)
            if full:
                shut(connection)
                continue
            threading.Thread(target=self._serve, args=(connection,), name="bulk", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        session: _Session | None = None
        try:
            try:
                session = self._greet(connection)
            finally:
                with self._lock:
                    self._strangers -= 1
            wait_at_most(connection, IDLE_S)
            stream = SealedStream(connection, session=session.id, key=session.key, longest=SEGMENT_BYTES, dials=False)
            while not self._closing:
                _, asked = stream.receive(NUMBER_BYTES)
                try:
                    segment = self._read(session.device, session.content_id, int.from_bytes(asked))
                except VaultError as e:
                    _log.debug("bulk: %s", e)
                    stream.send(NOT_HERE, b"")
                    break
                stream.send(SEGMENT, segment)
        except (TransportError, UntrustedInputError) as e:
            _log.debug("bulk: %s", e)
        except Exception:
            _log.exception("a bulk stream failed unexpectedly")
        finally:
            shut(connection)
            with self._lock:
                self._connections.discard(connection)
                if session is not None:
                    self._sessions.pop(session.id, None)

    def _greet(self, connection: socket.socket) -> _Session:
        """Take the hello; the session is used up by it. Raises UntrustedInputError, TransportError."""
        said = bytearray(HELLO_BYTES)
        read_within(connection, memoryview(said), HELLO_S)
        with self._lock:
            session = self._sessions.get(bytes(said[:SESSION_BYTES]))
            known = session is not None and not session.open
        if session is None or not known:
            raise UntrustedInputError("somebody knocked at the bulk door for no session")
        check_hello(bytes(said), session.id, session.key)
        with self._lock:
            if session.open or self._sessions.get(session.id) is not session:
                raise UntrustedInputError("a bulk session was used twice")
            session.open = True
        return session
