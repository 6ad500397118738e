"""Finds connections that send on and on and finish no message, by the memory that they cost.

libzmq collects all parts of a message before it hands over the first, however many, and tells nobody meanwhile. So when
this process has grown a lot, connections that said nothing whole for a moment are ended: those from which more is there
to be read, or all of them when that tells none apart. libzmq then frees what it holds for them. Who was only quiet
connects again, and goes on where it was. Who says nothing whole for minutes is ended too, so that nobody fills memory
slowly. Used by the door's thread only. Linux; elsewhere it does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import socket
import struct
import termios
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from walytis_vault.bus.peer import shut_down

_log = logging.getLogger(__name__)

MEMORY: Final = 512 << 20
"""Bytes by which the process may grow in ten minutes."""
QUIET_S: Final = 0.5
"""Seconds without a whole message after which a connection is suspected when memory has grown."""
_SAMPLE_S: Final = 5.0
_PAST: Final = 120
"""Samples of memory that are remembered: ten minutes of them."""
_LOOK_S: Final = 30.0
"""Seconds between looks at who is mute: each costs some 20 µs for each open descriptor."""
_OWN: Final = Path("/proc/self")
_DOUBT_S: Final = 2.0
"""Seconds for which memory has grown after which all quiet connections are ended, if nothing tells them apart."""


class Connection(NamedTuple):
    """A connection of libzmq's."""

    fd: int
    inode: int
    bulk: bool
    unread: int
    """Bytes that wait to be read."""


class Unfinished:
    """Watches memory, and the connections of some sockets.

    Args:
        memory: bytes by which the process may grow in ten minutes.
        mute: seconds after which a connection that says nothing whole is ended whatever memory does.
    """

    def __init__(self, *, memory: int = MEMORY, mute: float = float("inf")) -> None:
        self._memory, self._mute = memory, mute
        self._ours: dict[object, bool] = {}
        """Paths and ports where the process listens, and whether that is the bulk socket."""
        self._theirs: set[int] = set()
        """Ports of others."""
        self._since: dict[int, float] = {}
        """When each connection, by its inode, was first seen."""
        self._past: deque[int] = deque(maxlen=_PAST)
        self._sample_at = self._look_at = 0.0
        self._grown_at: float | None = None
        self._ended = False

    def listens(self, endpoint: str, *, bulk: bool = False) -> None:
        """Watch what is accepted there (as it was bound)."""
        path = endpoint.removeprefix("ipc://")
        self._ours[path if path != endpoint else int(endpoint.rpartition(":")[2])] = bulk

    def dials(self, port: int) -> None:
        """Watch what is connected to that TCP port."""
        self._theirs.add(port)

    def look(self, now: float, said: Mapping[int, float], others: float = 0.0) -> list[Connection]:
        """Look, end what is to be ended, and return it.

        Args:
            now: monotonic seconds.
            said: when each connection, by its inode, said something whole last.
            others: the same for those that it does not name.
        """
        try:
            return self._look(now, said, others)
        except OSError:  # another system, or no descriptor is left to look with: at the next look, perhaps
            return []

    def _look(self, now: float, said: Mapping[int, float], others: float) -> list[Connection]:
        ended: list[Connection] = []
        if self._grown(now):
            quiet = [c for c in self._connections() if now - said.get(c.inode, others) > QUIET_S]
            self._grown_at = self._grown_at or now
            ended = [c for c in quiet if c.unread] or (quiet if now - self._grown_at >= _DOUBT_S else [])
            self._ended = now - self._grown_at >= _DOUBT_S or bool(ended)
            if ended:
                _log.warning("memory grew a lot: %d connections that said nothing whole are ended", len(ended))
        elif now >= self._look_at and self._mute < float("inf"):
            self._look_at = now + _LOOK_S
            found = [c for c in self._connections() if not c.bulk]  # there only streams speak
            self._since = {c.inode: self._since.get(c.inode, now) for c in found}
            ended = [c for c in found if now - max(said.get(c.inode, others), self._since[c.inode]) > self._mute]
        for connection in ended:
            shut_down(connection.fd, connection.inode)
        return ended

    def _grown(self, now: float) -> bool:
        """Whether memory has grown by more than it may since its least in the last minutes."""
        if self._ended:
            self._ended = False
            _trim()
            self._past.clear()  # what is there now is not theirs
        size = resident()
        if now >= self._sample_at or not self._past:
            self._sample_at = now + _SAMPLE_S
            self._past.append(size)
        if size - min(self._past) > self._memory:
            return True
        self._grown_at = None
        return False

    def _connections(self) -> Iterator[Connection]:
        for entry in os.scandir(_OWN / "fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(entry.path).startswith("socket:"):
                    continue
                mine = os.dup(int(entry.name))
                with socket.socket(fileno=mine) as connection:
                    bulk = self._bulk_if_watched(connection)
                    if bulk is None or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        continue
                    unread = struct.unpack("i", fcntl.ioctl(mine, termios.FIONREAD, bytes(4)))[0]
                    yield Connection(int(entry.name), os.fstat(mine).st_ino, bulk, unread)

    def _bulk_if_watched(self, connection: socket.socket) -> bool | None:
        name = connection.getsockname()
        if not isinstance(name, tuple):
            return self._ours.get(name)
        if name[1] not in self._ours and self._theirs and connection.getpeername()[1] in self._theirs:
            return False
        return self._ours.get(name[1])


def resident() -> int:
    """Resident bytes of this process."""
    return int((_OWN / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _trim() -> None:
    """Give freed memory back to the system; glibc keeps it else."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
