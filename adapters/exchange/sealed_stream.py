"""One TCP connection between two nodes whose frames are sealed with AES-256-GCM, for the bulk of the bytes.

The key comes over the authenticated link (CURVE) and serves one session: whoever else reaches the local ports of
a tunnel reads nothing and adds nothing. No frame can be repeated, left out, reordered or sent back to its
sender: the nonce is side and count. Refuses everything else. Spec: docs/peer-protocol.md, "Bulk streams".
"""

from __future__ import annotations

import contextlib
import hmac
import mmap
import secrets
import socket
import struct
import time
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walytis_vault.domain.errors import TransportError, UntrustedInputError

SESSION_BYTES: Final = 16
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
HELLO_BYTES: Final = SESSION_BYTES + TAG_BYTES
FRAME_S: Final = 30.0
"""Time for one whole frame, however it drips: 1 MiB comes at 35 KiB/s, or not at all."""
LABEL: Final = b"walytis-vault/bulk/v1"
_HELLO, _DIALLER, _DOOR = 0, 1, 2
"""First byte of a nonce: who seals."""


def new_session() -> tuple[bytes, bytes]:
    """A session's id and key, both random."""
    return secrets.token_bytes(SESSION_BYTES), secrets.token_bytes(KEY_BYTES)


def hello(session: bytes, key: bytes) -> bytes:
    """What the dialler says first: the session, and that it has its key."""
    return session + AESGCM(key).encrypt(_nonce(_HELLO, 0), b"", LABEL + session)


def check_hello(said: bytes, session: bytes, key: bytes) -> None:
    """Raise UntrustedInputError unless it is the hello of this session. In constant time."""
    if not hmac.compare_digest(said, hello(session, key)):
        raise UntrustedInputError("somebody without the session's key knocked at the bulk door")


class SealedStream:
    """Frames of known lengths in both directions. One thread sends and one receives, or one does both.

    Args:
        connection: connected; owned from now on. See `wait_at_most`.
        longest: bytes of the longest frame's data; both buffers are made once.
        dials: whether this side connected; the other side is the door.
    """

    def __init__(self, connection: socket.socket, *, session: bytes, key: bytes, longest: int, dials: bool) -> None:
        self._socket = connection
        self._cipher = AESGCM(key)
        self._context = LABEL + session
        self._sides = (_DIALLER, _DOOR) if dials else (_DOOR, _DIALLER)
        self._sent = self._received = 0
        self._outgoing = memoryview(bytearray(1 + longest + TAG_BYTES))
        self._incoming = memoryview(bytearray(1 + longest + TAG_BYTES))
        # Whole pages of its own: what lies in them can be written to disk without a copy.
        self._opened = memoryview(mmap.mmap(-1, longest))

    def send(self, kind: int, data: bytes | memoryview) -> None:
        """Send one frame. Raises TransportError."""
        size = 1 + len(data) + TAG_BYTES
        out = self._outgoing[:size]
        out[0] = kind
        self._cipher.encrypt_into(_nonce(self._sides[0], self._sent), data, self._aad(kind), out[1:])
        self._sent += 1
        _send_all(self._socket, out, time.monotonic() + FRAME_S)

    def receive(self, size: int, *, empty_kinds: tuple[int, ...] = ()) -> tuple[int, memoryview]:
        """Receive one frame: its kind, and its data, which stays valid until the next call.

        Args:
            size: bytes that the frame must have, unless its kind is one of `empty_kinds`, which have none.
        Raises:
            TransportError: the connection ended, nothing came for too long, or the whole took longer than `FRAME_S`.
            UntrustedInputError: changed, repeated, out of order or not meant for this side.
        """
        until = time.monotonic() + FRAME_S
        read_exactly(self._socket, self._incoming[:1], until)
        kind = self._incoming[0]
        size = 0 if kind in empty_kinds else size
        sealed, opened = self._incoming[1 : 1 + size + TAG_BYTES], self._opened[:size]
        read_exactly(self._socket, sealed, until)
        try:
            self._cipher.decrypt_into(_nonce(self._sides[1], self._received), sealed, self._aad(kind), opened)
        except (InvalidTag, ValueError) as e:
            raise UntrustedInputError("a frame of a bulk stream was changed on its way") from e
        self._received += 1
        return kind, opened

    def close(self) -> None:
        """End the connection; whoever waits on it is woken. Any thread; idempotent."""
        shut(self._socket)

    def _aad(self, kind: int) -> bytes:
        return self._context + bytes([kind])


def _send_all(connection: socket.socket, data: memoryview, until: float) -> None:
    """Send all of it. Raises TransportError when the connection ends, or it is later than `until`."""
    done = 0
    while True:
        try:
            done += connection.send(data[done:])
        except OSError as e:
            raise TransportError(f"the other node takes no more: {e}") from e
        if done == len(data):
            return
        if time.monotonic() >= until:
            raise TransportError("the other node takes too long to take a frame")


def read_exactly(connection: socket.socket, into: memoryview, until: float) -> None:
    """Fill `into`. Raises TransportError when the connection ends or times out first, or it is later than `until`.

    The kernel's bound (see `wait_at_most`) is for one call, and each byte that drips in allows another one.
    """
    done = 0
    while done < len(into):
        if done and time.monotonic() >= until:
            raise TransportError("the other node takes too long for a frame")
        try:
            got = connection.recv_into(into[done:], 0, socket.MSG_WAITALL)
        except OSError as e:
            raise TransportError(f"the other node sends no more: {e}") from e
        if not got:
            raise TransportError("the other node ended the stream")
        done += got


def read_within(connection: socket.socket, into: memoryview, seconds: float) -> None:
    """Fill `into` within a time, however slowly it drips. Raises TransportError."""
    until, done = time.monotonic() + seconds, 0
    while done < len(into):
        try:
            connection.settimeout(max(0.001, until - time.monotonic()))
            got = connection.recv_into(into[done:])
        except OSError as e:
            raise TransportError(f"the other node said nothing in time: {e}") from e
        if not got:
            raise TransportError("the other node ended the stream")
        done += got


def wait_at_most(connection: socket.socket, seconds: float) -> None:
    """Bound every wait on a socket by the kernel's own clock: blocking calls then take whole frames at once."""
    connection.settimeout(None)
    span = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


def shut(connection: socket.socket) -> None:
    """Shut down and close a socket, whatever state it is in."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _nonce(side: int, count: int) -> bytes:
    return bytes([side, 0, 0, 0]) + count.to_bytes(8, "big")
