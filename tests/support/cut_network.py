"""A network between nodes on one machine that can be cut into two halves and healed, while both halves live.

Each node announces a gate in front of its own port, and nothing else, so that the others come through the gate. A
gate tells by the connecting port which process comes (Linux), and lets nobody through from the other half.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from support.peer_nodes import Member, meet


def pid_behind(port: int, pids: Sequence[int]) -> int | None:
    """Which of some processes has the socket with this local TCP port."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # that one was closed
                    if os.readlink(entry.path) in inodes:
                        return pid
    return None


class _Gate:
    """In front of one node. Each connection takes two threads."""

    def __init__(self, network: CutNetwork, member: Member, target: int) -> None:
        self.member = member
        self._network, self._target = network, target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, (_, port) = self._listener.accept()
                threading.Thread(target=self._join, args=(client, port), name="gate-join", daemon=True).start()

    def _join(self, client: socket.socket, port: int) -> None:
        source = pid_behind(port, self._network.pids())
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            server.settimeout(None)
        except OSError:  # the node is not there now
            client.close()
            return
        if not self._network.opened(source, self.member, client, server):
            return
        threading.Thread(target=_pump, args=(client, server), name="gate-out", daemon=True).start()
        _pump(server, client)

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    _close(source, target)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


class CutNetwork:
    """Between members whose nodes run; they are started anew behind their gates."""

    def __init__(self, *members: Member) -> None:
        """Put a gate in front of each node, and wait until all are connected through them."""
        self._members = members
        self._lock = threading.Lock()
        self._half: frozenset[str] = frozenset()
        """Devices that the others cannot reach now."""
        self._open: list[tuple[int | None, Member, socket.socket, socket.socket]] = []
        self._devices = {member.home: member.device for member in members}
        self._gates: list[_Gate] = []
        for member in members:
            member.stop()
        configs = {member: json.loads(_config(member).read_text()) for member in members}
        known = {}
        for member, config in configs.items():
            self._gates.append(gate := _Gate(self, member, port := _free_port()))
            # Another port than before, which the others' nodes may still know.
            config["Addresses"].update(
                Swarm=[f"/ip4/127.0.0.1/tcp/{port}"], Announce=[f"/ip4/127.0.0.1/tcp/{gate.port}"]
            )
            known[config["Identity"]["PeerID"]] = config["Addresses"]["Announce"]
            _config(member).write_text(json.dumps(config))
        for member in members:
            (member.home / "peers" / "addresses.json").write_text(json.dumps(known))
            member.start()
        meet(*members)

    def pids(self) -> list[int]:
        """Of the nodes that run."""
        return [member.node.pid for member in self._members if member.node is not None]

    def opened(self, source: int | None, to: Member, client: socket.socket, server: socket.socket) -> bool:
        """Note a connection, or end it: nobody passes from one half to the other."""
        with self._lock:
            if self._parted(source, to):
                _close(client, server)
                return False
            self._open.append((source, to, client, server))
            return True

    def _parted(self, source: int | None, to: Member) -> bool:
        """Whether there is a cut between two. Who cannot be told apart is let through only while there is none."""
        if not self._half:
            return False
        names = {m.node.pid: self._devices[m.home] for m in self._members if m.node is not None}
        return source not in names or (names[source] in self._half) != (self._devices[to.home] in self._half)

    def cut(self, *half: Member) -> None:
        """Part these members from the others: what is open is closed, and nothing opens, until `heal`."""
        with self._lock:
            self._half = frozenset(self._devices[member.home] for member in half)
            for source, to, *ends in self._open:
                if self._parted(source, to):
                    _close(*ends)

    def heal(self) -> None:
        """Let everybody through again."""
        with self._lock:
            self._half = frozenset()

    def close(self) -> None:
        """Take the gates away. Whoever lives on behind them is cut off."""
        for gate in self._gates:
            gate.close()
        with self._lock:
            for _, _, *ends in self._open:
                _close(*ends)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _config(member: Member) -> Path:
    return member.home / "ipfs" / "config"
