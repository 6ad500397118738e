"""The node's side of the bus: serves a `VaultService` to local programs over ZeroMQ.

Listens on a socket in a 0700 folder (or, asked for, on a loopback port) with CURVE for every byte, admits
only keys that were added, and gives each the calls that its verbs allow. Spec: docs/bus-protocol.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from walytis_vault.bus import calls as c
from walytis_vault.bus.batcher import Batcher
from walytis_vault.bus.budget import Budget
from walytis_vault.bus.clients import ClientTable
from walytis_vault.bus.desk import Desk
from walytis_vault.bus.door import Door
from walytis_vault.bus.downloads import Downloads
from walytis_vault.bus.endpoint import (
    BULK_NAME,
    Address,
    EndpointRecord,
    check_listen,
    ipc_endpoint,
    prepare_socket,
    remove_record,
    write_record,
)
from walytis_vault.bus.feed import Feed
from walytis_vault.bus.heap import steady_heap
from walytis_vault.bus.meter import Meter
from walytis_vault.bus.peer import Peer
from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.protocol import NOTHING, BusLimits, Header, Kind, Pong, decode
from walytis_vault.bus.request_key import request_key
from walytis_vault.bus.security import BusKeys, ClientEntry, bus_keys, make_private_folder
from walytis_vault.bus.service import VaultService
from walytis_vault.bus.uploads import Uploads
from walytis_vault.domain.errors import BusyError, MisuseError

_log = logging.getLogger(__name__)

_CLOSE_POOLS = 1.0
_CLOSE_DOOR = 0.7


class BusServer:
    """Serves one node.

    Args:
        service: what is served. Its methods run on the bus's own threads.
        folder: the home's `bus` folder; made 0700 when missing.
        keys: the node's CURVE secret key: `BusKeys`, 32 raw bytes, or Z85.
        endpoint: None for a socket in the folder; `tcp://127.0.0.1:PORT` (port `*`: any free one) to opt in to TCP.
        limits: sizes and times.
    Raises:
        MisuseError: bad key or endpoint.
    """

    def __init__(
        self,
        service: VaultService,
        *,
        folder: Path,
        keys: BusKeys | bytes | str,
        endpoint: str | None = None,
        limits: BusLimits | None = None,
    ) -> None:
        self._service = service
        self._folder = Path(folder)
        self._keys = keys if isinstance(keys, BusKeys) else bus_keys(keys)
        self._wanted = endpoint
        self._limits = limits or BusLimits()
        self._run_id = secrets.token_hex(8)
        self._meter = Meter()
        self._door: Door | None = None
        self._address: Address | None = None
        self._bulk_address: Address | None = None
        self._pools: dict[c.Lane, FairPool] = {}
        self.endpoint = ""

    def start(self) -> str:
        """Listen and serve; returns the endpoint.

        Raises:
            AlreadyRunningError: somebody serves this folder. StorageError, TransportError: it cannot be served.
        """
        steady_heap()
        make_private_folder(self._folder)
        wanted = self._wanted or ipc_endpoint(self._folder)
        check_listen(self._wanted)
        address = None if wanted.endswith(":*") else Address(wanted)
        try:
            if address is not None:
                prepare_socket(address)
            door = Door(self._keys, ClientTable(self._folder), self._limits, self._meter)
            try:
                bound = door.bind(wanted if address is None else address.zmq)
                if address is not None and address.path is not None:
                    os.chmod(address.path, 0o600)
                bulk = self._bind_bulk(door, address)
                self.endpoint = wanted if address is not None and address.path is not None else bound
                self._assemble(door)
                record = EndpointRecord(
                    endpoint=self.endpoint, server_key=self._keys.public, pid=os.getpid(), bulk=bulk
                )
                write_record(self._folder, record)
            except BaseException:
                door.close(_CLOSE_DOOR)
                raise
        except BaseException:
            if address is not None:
                address.close()
            raise
        self._door, self._address = door, address
        door.start(self)
        _log.info("bus: serving %s", self.endpoint)
        return self.endpoint

    def _bind_bulk(self, door: Door, address: Address | None) -> str | None:
        """The second socket, for the data of large streams; only where no stranger reaches it."""
        if address is None or address.path is None:
            return None
        self._bulk_address = bulk = Address(f"ipc://{self._folder.absolute() / BULK_NAME}")
        prepare_socket(bulk)
        door.bind_bulk(bulk.zmq)
        if bulk.path is not None:
            os.chmod(bulk.path, 0o600)
        return bulk.endpoint

    def _assemble(self, door: Door) -> None:
        limits = self._limits
        self._pools = {
            "read": FairPool("read", 4, per_owner=3),
            "effect": FairPool("effect", 32),
            "stream": FairPool("stream", 8, per_owner=7),
            "fetch": FairPool("fetch", 64, per_owner=8),
            "slow": FairPool("slow", 2),
            "past": FairPool("past", 2),
            "loop": FairPool("feed", 2),
        }
        down, up = Budget("down", limits), Budget("up", limits)
        pools = self._pools
        self._desk = Desk(door, self._service, pools)
        self._downloads = Downloads(door, self._service, pools["stream"], pools["fetch"], down)
        self._uploads = Uploads(door, self._service, pools["effect"], pools["stream"], up)
        self._feed = Feed(door, self._service, pools["loop"])
        self._budgets = (down, up)

    def close(self) -> None:
        """Stop serving, within 2 seconds. Requests in flight get no answer; clients repeat them. Idempotent."""
        door, self._door = self._door, None
        if door is None:
            return
        remove_record(self._folder)
        self._feed.close()
        pools: list[FairPool | Batcher[Any]] = [*self._pools.values(), self._desk.publishes]
        for pool in pools:
            pool.close()
        deadline = time.monotonic() + _CLOSE_POOLS
        for pool in pools:
            pool.join(max(0.0, deadline - time.monotonic()))
        door.close(_CLOSE_DOOR)
        self._uploads.close()
        self._downloads.close()
        for address in (self._address, self._bulk_address):
            if address is not None:
                if address.path is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(address.path)
                address.close()

    def __enter__(self) -> BusServer:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def details(self) -> dict[str, Any]:
        """Health of the bus for `status`: counts and bytes, no names."""
        door = self._door
        return {
            "connections": door.connections if door else 0,
            "running": self._desk.running if door else 0,
            "queued": {name: pool.depth for name, pool in self._pools.items()}
            | {"publish": self._desk.publishes.depth if door else 0},
            "bytes_down": self._budgets[0].used if door else 0,
            "bytes_up": self._budgets[1].used if door else 0,
            "downloads": self._downloads.open_count if door else 0,
            "uploads": self._uploads.open_count if door else 0,
            "subscriptions": self._feed.open_count if door else 0,
            "totals": self._meter.totals(),
            "rates": self._meter.rates(),
        }

    def on_message(self, peer: Peer, message: Header) -> None:
        """For the door: route one message. Raises VaultError, which the door sends back."""
        if message.kind >= Kind.REPLY:
            raise MisuseError(f"{message.kind.name} is for clients, not for the node")
        if message.kind is Kind.REQUEST:
            self._request(peer, message)
            return
        if message.kind in (Kind.PING, Kind.CANCEL):
            decode(NOTHING, message.body)
        if (
            self._downloads.on_message(peer, message)
            or self._uploads.on_message(peer, message)
            or self._feed.on_message(peer, message)
        ):
            return
        door = self._door
        if door is None:
            return
        if message.kind is Kind.PING and not any(message.id):
            door.send(peer, Kind.PONG, message.id, Pong(node=self._run_id))
        elif message.kind is not Kind.CANCEL:
            door.send_gone(peer, message)

    def on_bulk(self, message: Header, connect: Callable[[ClientEntry], Peer]) -> None:
        """For the door: a message from the bulk socket."""
        if message.kind is Kind.ATTACH:
            self._downloads.on_bulk(message, connect)
        elif message.kind is Kind.DATA:
            self._uploads.on_bulk(message)

    def _request(self, peer: Peer, message: Header) -> None:
        self._meter.counts.requests += 1
        call = decode(c.CALL, message.body)
        self._desk.check_verb(peer, call)
        if len(message.data) and not isinstance(call, c.PublishCall):
            raise MisuseError("only a publish has a data part")
        if not any(message.id):
            raise MisuseError("a request needs an id of its own")
        limits = self._limits
        if peer.waiting_bytes > limits.peer_waiting_bytes // 4:
            raise BusyError("replies wait to be taken: take them, then repeat")
        name = peer.entry.name
        if isinstance(call, c.OpenCall):
            self._check_streams(name)
            self._downloads.open(peer, message.id, call)
        elif isinstance(call, c.PublishCall) and not call.inline:
            self._check_streams(name)
            self._uploads.open(peer, call, request_key(name, message, call))
        elif isinstance(call, c.SubscribeCall | c.WaitForCall):
            if self._feed.count(name) >= limits.client_subscriptions:
                raise BusyError(f"client {name!r} has {limits.client_subscriptions} subscriptions: end some first")
            if isinstance(call, c.SubscribeCall):
                self._feed.subscribe(peer, message.id, call)
            else:
                self._feed.wait_for(peer, message.id, call)
        else:
            self._desk.take(peer, message, call)

    def _check_streams(self, name: str) -> None:
        if self._downloads.count(name) + self._uploads.count(name) >= self._limits.client_streams:
            raise BusyError(f"client {name!r} has {self._limits.client_streams} streams open: end some first")

    def on_gone(self, peer: Peer) -> None:
        """For the door: a connection has ended."""
        self._downloads.on_gone(peer)
        self._uploads.on_gone(peer)
        self._feed.on_gone(peer)

    def on_tick(self, now: float) -> None:
        """For the door: time passes."""
        self._meter.on_tick(now)
        self._downloads.on_tick(now)
        self._uploads.on_tick(now)
        self._feed.on_tick(now)
