"""A proxy for a PostgreSQL server's unix socket that can lose the answer to a COMMIT, or cut everybody off.

What the server does is real; only the client never hears of it, as when a network fails at the worst moment.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

COMMIT = b"COMMIT"


class LossyProxy:
    """Listens in `folder` and forwards to the server whose socket lies in `server`. A context manager."""

    def __init__(self, folder: Path, server: Path) -> None:
        self._server = str(server / ".s.PGSQL.5432")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self.lose_commit = False
        """The next COMMIT is carried out, and its answer lost with the connection."""
        self.lost = threading.Event()
        """An answer was lost."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._open += [client, server]
                swallow = threading.Event()
                threading.Thread(target=self._forward, args=(client, server, swallow), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client, swallow), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self.lose_commit and COMMIT in data:
                    self.lose_commit = False
                    swallow.set()
                server.sendall(data)
        self._cut(client, server)

    def _answer(self, server: socket.socket, client: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if swallow.is_set():
                    self.lost.set()
                    break
                client.sendall(data)
        self._cut(client, server)

    @staticmethod
    def _cut(*ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut_all(self) -> None:
        """Cut every connection; new ones are taken."""
        ends, self._open = self._open, []
        self._cut(*ends)

    def __enter__(self) -> LossyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut_all()
