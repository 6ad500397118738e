"""A client's sockets to one node: the one with CURVE, the one for sealed bulk data, and what they wait to send.

One object for each attempt to connect: nothing of an earlier attempt can come out of a later one. Used by the
link's thread only.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from walytis_vault.bus.endpoint import Address, EndpointRecord
from walytis_vault.bus.protocol import BusLimits
from walytis_vault.bus.security import ClientKey
from walytis_vault.domain.errors import BusyError, NoNodeError

_BURST: Final = 64

Parts = list["bytes | memoryview"]


class ShutError(BusyError):
    """The node lets nobody in just now. To callers it is a BusyError."""

    def __init__(self) -> None:
        super().__init__("too many programs connect to the node at once, so new ones wait: try again soon")


class Line:
    """One socket and its queue. What it cannot take now waits, bounded by the credit of who sends."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller, cap: int) -> None:
        self.socket = s = context.socket(zmq.DEALER)
        self._poller = poller
        self._unsent: deque[Parts] = deque()
        s.linger = 0
        s.sndhwm = 256
        s.rcvhwm = 256
        s.immediate = True
        s.reconnect_ivl = -1  # what waits is for this run of the node, and for no later one
        s.heartbeat_ivl = 10_000
        s.heartbeat_timeout = 30_000
        s.maxmsgsize = cap
        poller.register(s, zmq.POLLIN)

    def send(self, parts: Parts) -> None:
        """Send, or queue."""
        if self._unsent or not self._try(parts):
            self._unsent.append(parts)
            self._poller.modify(self.socket, zmq.POLLIN | zmq.POLLOUT)

    def flush(self) -> None:
        """Send what waits as far as it goes."""
        if not self._unsent:
            return
        while self._unsent and self._try(self._unsent[0]):
            self._unsent.popleft()
        if not self._unsent:
            self._poller.modify(self.socket, zmq.POLLIN)

    def receive(self) -> Iterator[list[memoryview]]:
        """Messages that are there, not too many at once."""
        for _ in range(_BURST):
            if self.socket.closed:
                return
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            yield [f.buffer for f in frames]

    def close(self) -> None:
        """Drop the socket and what waits."""
        self._poller.unregister(self.socket)
        self.socket.close(0)
        self._unsent.clear()

    def _try(self, parts: Parts) -> bool:
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


class Wire:
    """Both lines to a node.

    Args:
        record: where the node is, and its key.
        key: the client's key pair.
    Raises:
        NoNodeError: nobody accepts connections there. ShutError: nobody new is let in just now.
        MisuseError: the record is none.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        record: EndpointRecord,
        key: ClientKey,
        limits: BusLimits,
    ) -> None:
        self._poller = poller
        self._addresses = [Address(record.endpoint)]
        try:
            if not self._addresses[0].answers():
                if self._addresses[0].is_shut():
                    raise ShutError
                raise NoNodeError(f"no node answers at {record.endpoint}: start one with `walytis-vault serve`")
            if record.bulk is not None:
                self._addresses.append(Address(record.bulk))
        except BaseException:
            self._release()
            raise
        self.main = Line(context, poller, limits.reply + 64)
        s = self.main.socket
        s.curve_serverkey = record.server_key.encode()
        s.curve_publickey = key.public_key.encode()
        s.curve_secretkey = key.secret_key.encode()
        self.monitor = s.get_monitor_socket()
        poller.register(self.monitor, zmq.POLLIN)
        s.connect(self._addresses[0].zmq)
        self.bulk: Line | None = None
        if record.bulk is not None:
            self.bulk = Line(context, poller, limits.bulk_chunk + 64)
            self.bulk.socket.reconnect_ivl = 100  # what comes late there belongs to no stream, and is dropped
            self.bulk.socket.connect(self._addresses[1].zmq)

    def events(self) -> Iterator[tuple[int, int]]:
        """What happened to the connection (zmq.EVENT_…), and the number that libzmq gives with it."""
        while not self.monitor.closed:
            try:
                told = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            yield int(told["event"]), int(told["value"])

    def missed(self) -> bool:
        """Whether somebody is there after all, though this connection came to nothing: the gate shut meanwhile."""
        return self._addresses[0].is_shut() or self._addresses[0].answers()

    def close(self) -> None:
        """Drop the sockets."""
        self._poller.unregister(self.monitor)
        with contextlib.suppress(zmq.ZMQError):
            self.main.socket.disable_monitor()
        self.monitor.close(0)
        self.main.close()
        if self.bulk is not None:
            self.bulk.close()
        self._release()

    def _release(self) -> None:
        for address in self._addresses:
            address.close()
