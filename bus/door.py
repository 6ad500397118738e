"""The door: one thread that owns the ROUTER socket, admits keys, and knows every connection.

Nothing here blocks: what a connection cannot take waits in its own bounded queue, and whoever takes nothing
for long is cut. Every message is attributed to the key that CURVE authenticated for its connection, and the
key is looked up again for each one, so that a revoked client is out at once. Spec: docs/bus-protocol.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import zmq

from walytis_vault.bus.barred import Barred
from walytis_vault.bus.clients import ClientTable
from walytis_vault.bus.gate import Gate
from walytis_vault.bus.live import Live
from walytis_vault.bus.meter import Meter
from walytis_vault.bus.outbox import Outbox
from walytis_vault.bus.peer import Listener, Peer, inode_of, source_of
from walytis_vault.bus.protocol import GONE, NO_ID, BusLimits, Header, Kind, failure, header, pack, split
from walytis_vault.bus.routers import make_router
from walytis_vault.bus.sealing import TAG_BYTES
from walytis_vault.bus.security import BusKeys, ClientEntry
from walytis_vault.bus.unfinished import QUIET_S, Unfinished
from walytis_vault.bus.wake import Wake
from walytis_vault.bus.zap import ZAP_DOMAIN, Zap
from walytis_vault.domain.errors import TransportError, UntrustedInputError, VaultError

_log = logging.getLogger(__name__)

_BURST: Final = 64
"""Messages that are read before anything else gets its turn."""
_BURST_LEAST: Final = 8
"""Messages that are read though replies wait to be sent."""
_TICK: Final = 0.25
_OWN_RID: Final = 5
"""Bytes of a routing id that libzmq made: a zero and a number that began at random."""
_NOBODY: Final = ClientEntry(name="?", public_key="?" * 40, verbs=())
_RETRY: Final = 0.05
_ENDED: Final = 30.0
"""Seconds after which nothing of a connection that was cut can still come."""
_QUEUED: Final = 16
"""Messages that libzmq may hold for one connection (a count): it weighs them not."""
_QUEUED_BULK: Final = 256


class Door:
    """The ROUTER and its thread.

    Args:
        keys: the node's key pair.
        clients: who is admitted.
        limits: sizes and times.
        meter: counts what goes through.
    """

    def __init__(self, keys: BusKeys, clients: ClientTable, limits: BusLimits, meter: Meter | None = None) -> None:
        self.limits = limits
        self._meter = meter or Meter()
        self._counts = self._meter.counts
        self._clients = clients
        self._peers: dict[bytes, Peer] = {}
        self._bulk_peers: dict[bytes, Peer] = {}
        self._by_fd: dict[int, Peer] = {}
        """Ordinary connections by descriptor."""
        self._bulk_said: dict[int, float] = {}
        """When something whole came last over a connection to the bulk socket, by its descriptor."""
        self._ended: dict[bytes, float] = {}
        """Connections that were cut, and when: what they sent before may still come."""
        self._posted: deque[Callable[[], None]] = deque()
        self._wake = Wake()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._listener: Listener | None = None
        self._context = zmq.Context(io_threads=2)
        self._barred = Barred(limits)
        self._unfinished = Unfinished(memory=limits.memory, mute=limits.mute)
        self._zap = Zap(self._context, clients, self._barred)
        self._router = make_router(self._context, part=limits.part, queued=_QUEUED)
        self._live = Live(self._router)
        self._outbox = Outbox(limits, self._counts, self._router, cut=self.cut, gone=self._gone)
        self._bulk: zmq.Socket[bytes] | None = None
        self._router.curve_server = True
        self._router.curve_secretkey = keys.secret.encode()
        self._router.zap_domain = ZAP_DOMAIN
        self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def bind(self, endpoint: str) -> str:
        """Listen; returns what was bound (a wildcard port is filled in). Raises TransportError."""
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as e:
            raise TransportError(f"cannot listen on {endpoint}: {e.strerror or e}") from e
        if endpoint.startswith("ipc://"):
            path = Path(endpoint.removeprefix("ipc://"))
            self._zap.gate = Gate(path, self.limits.connects, time.monotonic())
        bound = str(self._router.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self._unfinished.listens(bound)
        return bound

    def bind_bulk(self, endpoint: str) -> None:
        """Listen for connections that carry sealed data. Raises TransportError."""
        self._bulk = make_router(self._context, part=self.limits.part, queued=_QUEUED_BULK)
        self._outbox.bulk = self._bulk
        self._unfinished.listens(endpoint, bulk=True)
        try:
            self._bulk.bind(endpoint)
        except zmq.ZMQError as e:
            raise TransportError(f"cannot listen on {endpoint}: {e.strerror or e}") from e

    @property
    def has_bulk(self) -> bool:
        """Whether there is a bulk socket."""
        return self._bulk is not None

    def start(self, listener: Listener) -> None:
        """Begin to serve."""
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="bus-door", daemon=True)
        self._thread.start()

    def post(self, action: Callable[[], None]) -> None:
        """Run something on the door's thread, in order. From any thread; never blocks."""
        self._posted.append(action)
        self._wake.set()

    def close(self, timeout: float) -> None:
        """Stop the thread and free the sockets, within `timeout` seconds."""
        self._stopping = True
        self.post(lambda: None)
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                _log.error("the bus did not stop in %.1f s; its socket is left to the end of the process", timeout)
                return
        self._zap.gate.close()
        self._live.close()
        self._context.destroy(linger=200)
        self._wake.close()

    @property
    def connections(self) -> int:
        """Connections that have said something and are not known to be gone (a count)."""
        return len(self._peers)

    def send(
        self, peer: Peer, kind: Kind, message_id: bytes, body: Any, data: bytes | memoryview | None = None
    ) -> None:
        """Send to a connection, or queue. On the door's thread only."""
        # A budget bounds the data of downloads already.
        self._outbox.send(peer, pack(kind, message_id, body, data), weighed=kind is not Kind.CHUNK)

    def send_encoded(self, peer: Peer, kind: Kind, message_id: bytes, body: bytes) -> None:
        """Send a body that is encoded already."""
        self._outbox.send(peer, [header(kind, message_id), body])

    def send_error(self, peer: Peer, message_id: bytes, error: VaultError) -> None:
        """Send an ERROR."""
        self._counts.errors += 1
        self.send(peer, Kind.ERROR, message_id, failure(error))

    def send_gone(self, peer: Peer, message: Header) -> None:
        """Tell that there is no such stream (any more). Whoever sends data on and on nevertheless is cut."""
        self._counts.errors += 1
        self.send(peer, Kind.ERROR, message.id, GONE)
        if message.kind is Kind.DATA:
            self.hold_against(peer)

    def hold_against(self, peer: Peer) -> None:
        """It made work for nothing; whoever does so on and on is cut."""
        if (reason := self._barred.refused(peer, time.monotonic())) is not None:
            self.cut(peer, reason, bar=True)

    def cut(self, peer: Peer, why: str, *, bar: bool = False) -> None:
        """End a connection: shut its socket down, so that libzmq frees what it holds for it.

        Args:
            bar: its key may not connect again for a while.
        """
        if peer.gone:
            return
        self._counts.cut += 1
        if not peer.bulk:
            self._ended[peer.rid] = time.monotonic()
        if bar:
            why += f"; it may connect again in {self._barred.add(peer.entry.public_key, time.monotonic()):.0f} s"
        # Not the key's name, which its owner chose: `client list` shows which key begins so.
        _log.warning("connection of key %s… cut: %s", peer.entry.public_key[:8], why)
        # The descriptor is libzmq's own; it is only valid while the connection is: ask first.
        if self._outbox.reaches(peer):
            peer.shut_down()
        self._gone(peer)

    def _gone(self, peer: Peer) -> None:
        if peer.gone:
            return
        peer.gone = True
        self._outbox.forget(peer)
        peers = self._bulk_peers if peer.bulk else self._peers
        if peers.get(peer.rid) is peer:
            del peers[peer.rid]
        if self._by_fd.get(peer.fd) is peer:
            del self._by_fd[peer.fd]
        if self._listener is not None:
            self._listener.on_gone(peer)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._zap.socket, zmq.POLLIN)
        poller.register(self._live.events, zmq.POLLIN)
        if self._bulk is not None:
            poller.register(self._bulk, zmq.POLLIN)
        poller.register(self._wake.fileno(), zmq.POLLIN)
        taken = [int(s.FD) for s in (self._router, self._bulk) if s is not None]
        next_tick = time.monotonic() + _TICK
        while not self._stopping:
            now = time.monotonic()
            # libzmq's own descriptor tells when a connection takes something again.
            for descriptor in taken:
                poller.register(descriptor, zmq.POLLIN if self._outbox.blocked else 0)
            wait = min(next_tick - now, _RETRY if self._outbox.blocked else _TICK)
            ready = dict(poller.poll(max(0, int(wait * 1000))))
            try:
                self._wake.clear()
                for _ in range(len(self._posted)):
                    self._posted.popleft()()
                if self._zap.socket in ready:
                    self._zap.answer()
                if self._live.events in ready:
                    self._watch()
                if self._router in ready:
                    self._receive()
                if self._bulk in ready:
                    self._receive_bulk()
                if self._outbox.blocked:
                    self._outbox.flush()
                now = time.monotonic()
                if now >= next_tick:
                    next_tick = now + _TICK
                    self._tick(now)
            except Exception:
                # One bad message or one failing service call must not end the door for everybody.
                _log.exception("bus: the door met an unexpected error and goes on")

    def _watch(self) -> None:
        """Forget the connections that have ended."""
        for fd in self._live.watch():
            if (peer := self._by_fd.pop(fd, None)) is not None:
                self._gone(peer)

    def _receive(self) -> None:
        for number in range(_BURST):
            if self._posted and number >= _BURST_LEAST:
                return
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._message(frames)

    def _message(self, frames: list[zmq.Frame]) -> None:
        rid = frames[0].bytes
        if rid in self._ended:
            return
        self._counts.messages_in += 1
        self._counts.bytes_in += sum(map(len, frames))
        try:
            user = str(frames[-1].get("User-Id"))
        except zmq.ZMQError:
            user = ""
        entry = self._clients.by_key(user)
        peer = self._peers.get(rid)
        if entry is None or len(rid) != _OWN_RID or rid[0]:
            # A connection that names itself could be given replies meant for one that had the name before.
            why = "it chose a routing id" if entry else "its key is not admitted (any more)"
            self.cut(peer or Peer(rid, entry or _NOBODY, source_of(frames[-1]), 0.0), why)
            return
        now = time.monotonic()
        if peer is not None and peer.entry.public_key != entry.public_key:
            self._gone(peer)
            peer = None
        if peer is None:
            peer = Peer(rid, entry, source_of(frames[-1]), now)
            self._watch()  # those that have ended make room, and one of them may have had this descriptor
            if not self._has_room(entry):
                self.cut(peer, "its key has too many connections")
                return
            self._peers[rid] = self._by_fd[peer.fd] = peer
        peer.entry = entry
        peer.heard = peer.said = now
        message_id = NO_ID
        try:
            message = split(
                [f.buffer for f in frames[1:5]] if len(frames) <= 5 else [b""] * len(frames[1:]),
                body_cap=self.limits.body,
                data_cap=self.limits.chunk,
            )
            message_id = message.id
            assert self._listener is not None
            self._listener.on_message(peer, message)
        except VaultError as e:
            if message_id == NO_ID and len(frames) > 1 and len(frames[1]) == 21:
                message_id = frames[1].bytes[5:]
            self.send_error(peer, message_id, e)
            self._counts.malformed += isinstance(e, UntrustedInputError)
            if (reason := self._barred.told(peer, e, now)) is not None:
                self.cut(peer, reason, bar=True)
        if peer.fd >= 0 and peer.fd not in self._live:
            self._gone(peer)  # this was the last that it said

    def _has_room(self, entry: ClientEntry) -> bool:
        """Whether a key may have one more connection."""
        own = sum(p.entry.public_key == entry.public_key for p in self._peers.values())
        return own < self.limits.client_connections

    def _look_after(self, peers: Iterable[Peer], now: float) -> None:
        """Forget those that are not there any more, however libzmq failed to tell."""
        for peer in peers:
            if self._outbox.reaches(peer):
                peer.heard = now
            else:
                self._gone(peer)

    def _receive_bulk(self) -> None:
        """Nobody is known here: what is not understood, or of no stream, is dropped without an answer."""
        assert self._bulk is not None
        assert self._listener is not None
        for _ in range(_BURST):
            try:
                frames = self._bulk.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            fd = source_of(frames[-1])
            self._bulk_said[fd] = time.monotonic()
            rid = frames[0].bytes
            if len(frames) > 4 or len(rid) != _OWN_RID or rid[0]:
                continue
            with contextlib.suppress(VaultError):
                parts = [f.buffer for f in frames[1:]]
                message = split(parts, body_cap=256, data_cap=self.limits.chunk + TAG_BYTES)
                self._listener.on_bulk(message, lambda entry, rid=rid, fd=fd: self._bulk_peer(rid, entry, fd))  # type: ignore[misc]

    def _bulk_peer(self, rid: bytes, entry: ClientEntry, fd: int) -> Peer:
        peer = self._bulk_peers.get(rid)
        if peer is not None and peer.entry.public_key != entry.public_key:
            self._gone(peer)
            peer = None
        if peer is None:
            peer = self._bulk_peers[rid] = Peer(rid, entry, fd, time.monotonic(), bulk=True)
        return peer

    def _end_unfinished(self, now: float) -> None:
        """End connections that finish no message, or say nothing for very long."""
        peers = {peer.inode: peer for peer in (*self._peers.values(), *self._bulk_peers.values())}
        said = {inode: peer.said for inode, peer in peers.items()}
        self._bulk_said = {fd: at for fd, at in self._bulk_said.items() if now - at < QUIET_S}
        said |= {inode_of(fd): at for fd, at in self._bulk_said.items()}
        for connection in self._unfinished.look(now, said):
            peer = peers.get(connection.inode)
            self._counts.cut += peer is None and connection.unread > 0
            if peer is not None and connection.unread:
                self.cut(peer, "it finishes no message")
            elif peer is not None:
                self._gone(peer)

    def _tick(self, now: float) -> None:
        self._clients.refresh()
        self._barred.refresh(now)
        self._zap.gate.tick(now)
        self._counts.shut = self._zap.gate.times
        self._ended = {rid: at for rid, at in self._ended.items() if now - at < _ENDED}
        for peer in [*self._peers.values(), *self._bulk_peers.values()]:
            if self._clients.by_key(peer.entry.public_key) is None:
                self.cut(peer, "its key was revoked")
        everyone = [*self._peers.values(), *self._bulk_peers.values()]
        self._look_after([p for p in everyone if now - p.heard > self.limits.quiet], now)
        for peer in list(self._outbox.blocked.values()):
            if now - peer.blocked_since > self.limits.stalled:
                self.cut(peer, "it takes nothing")
        if self._listener is not None:
            self._listener.on_tick(now)
        self._end_unfinished(now)
