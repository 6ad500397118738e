"""Links to the other members' devices: dial, greet, catch up with each other, pass new batches on.

Who the others are is what the log says, now. A device that does not answer is tried again after growing pauses;
nothing here blocks the rest of the node. Batches that come this way are judged like those of the chain.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from walytis_vault.adapters.exchange.tunnels import BULK, PeerTunnels
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.security import BusKeys
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.errors import TransportError, UntrustedInputError, VaultError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.peers import protocol as p
from walytis_vault.peers.addresses import AddressBook, own_addresses
from walytis_vault.peers.link import PeerLink

GREET_EVERY_S: Final = 10.0
GREET_TIMEOUT_S: Final = 5.0
STALE_S: Final = 25.0
"""A device that did not answer for so long counts as gone."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
TICK_S: Final = 1.0
DIALS: Final = 4
"""Devices that are dialled at once (a count)."""
PULL_ROUNDS: Final = 100_000
PUSH_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


class Underlay(Protocol):
    """What the running Walytis node tells of libp2p."""

    mode: str
    """The network mode."""

    @property
    def addresses(self) -> list[str]:
        """Own multiaddrs with /p2p/…"""
        ...

    def peers(self) -> list[str]:
        """Ids of connected peers."""
        ...

    def connect(self, multiaddr: str) -> None:
        """Connect now. Raises TransportError."""
        ...


class _Peer:
    """One other device."""

    def __init__(self, keys: DeviceKeys) -> None:
        self.keys = keys
        self.link: PeerLink | None = None
        self.greeted_at: float | None = None
        self.next_try = 0.0
        self.failures = 0
        self.busy = False
        self.again = False


class PeerNetwork:
    """The node's links. Any thread may call."""

    def __init__(
        self,
        underlay: Underlay,
        tunnels: PeerTunnels,
        log: VaultLog,
        book: AddressBook,
        *,
        device: str,
        keys: BusKeys,
    ) -> None:
        """Nothing runs before `start`."""
        self._underlay, self._tunnels, self._log, self.book = underlay, tunnels, log, book
        self._device, self._keys = device, keys
        self._peers: dict[bytes, _Peer] = {}
        self._lock = threading.Lock()
        self._on_greeted: list[Callable[[], None]] = []
        self._closing = False
        self._wake, self._grown = threading.Event(), threading.Event()
        self._dials = ThreadPoolExecutor(DIALS, thread_name_prefix="peer-dial")
        self._threads = [
            threading.Thread(target=self._keep_up, name="peer-network", daemon=True),
            threading.Thread(target=self._pass_on, name="peer-push", daemon=True),
        ]

    def start(self) -> None:
        """Begin to dial, and to pass on what this node records from now on."""
        self._pushed = self._log.index.last_numbers([self._device]).get(self._device, 0)
        self._log.index.listen(self._wake)
        self._log.index.listen(self._grown)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Close all links. Bounded."""
        self._closing = True
        self._log.index.unlisten(self._wake)
        self._log.index.unlisten(self._grown)
        self._wake.set()
        self._grown.set()
        self._dials.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            if peer.link is not None:
                peer.link.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(1.0)

    def on_greeted(self, callback: Callable[[], None]) -> None:
        """Call back (quickly) when a device answers that did not before."""
        self._on_greeted.append(callback)

    # -- who is there -------------------------------------------------------------------------------------------

    def device_of(self, bus_key: bytes) -> DeviceKeys | None:
        """The current member's device behind a CURVE key; None for anybody else."""
        return next((keys for keys in self._devices() if keys.bus == bus_key), None)

    def links(self) -> list[tuple[DeviceKeys, PeerLink]]:
        """Devices that answer now, and the links to them."""
        now = time.monotonic()
        with self._lock:
            return [
                (peer.keys, peer.link)
                for peer in self._peers.values()
                if peer.link is not None and peer.greeted_at is not None and now - peer.greeted_at < STALE_S
            ]

    def connected(self) -> tuple[str, ...]:
        """DIDs of the devices that answer now, sorted."""
        return tuple(sorted(keys.device for keys, _ in self.links()))

    def have(self) -> dict[str, int]:
        """Device -> number of its last batch here."""
        return self._log.index.last_numbers({k.device for k in self._log.membership().keys.values()})

    def addresses(self) -> p.Addresses:
        """Where this node is, without /p2p/…"""
        return own_addresses(self._underlay.addresses, self._underlay.mode)

    def met(self, keys: DeviceKeys, addresses: p.Addresses, known: p.Known, have: p.Have) -> None:
        """A device said hello, or answered: learn where it and others are; ask for what it has and we have not."""
        self.book.learn(keys.peer_id, addresses)
        members = {k.peer_id for k in self._devices()}
        for peer_id, theirs in known.items():
            if peer_id in members and peer_id != keys.peer_id:
                self.book.learn(peer_id, theirs, hearsay=True)
        with self._lock:
            peer = self._peers.get(key_id_of_device(keys))
            unanswered = peer is not None and peer.greeted_at is None and not peer.busy
        # It is there after all, or it has what we lack.
        if unanswered or self._lacks(have):
            self.greet_soon(keys)

    def greet_soon(self, keys: DeviceKeys) -> None:
        """Greet a device now, and catch up with it."""
        with self._lock:
            peer = self._peers.get(key_id_of_device(keys))
            if peer is not None:
                peer.next_try, peer.again = 0.0, True
        self._wake.set()

    def _devices(self) -> list[DeviceKeys]:
        """Every device of every current member, as announced and not superseded."""
        return self._log.membership().standing()

    def _lacks(self, have: p.Have) -> bool:
        ours = self.have()
        return any(number > ours.get(device, 0) for device, number in have.items())

    # -- dialling -----------------------------------------------------------------------------------------------

    def _keep_up(self) -> None:
        while not self._closing:
            self._wake.wait(TICK_S)
            self._wake.clear()
            try:
                self._look()
            except VaultError as e:
                _log.warning("peers: %s", e)

    def _look(self) -> None:
        wanted = {bytes(key_id_of_device(k)): k for k in self._devices() if k.device != self._device}
        now = time.monotonic()
        with self._lock:
            gone = [self._peers.pop(i) for i in list(self._peers) if i not in wanted]
            for key_id, keys in wanted.items():
                self._peers.setdefault(key_id, _Peer(keys))
            due = [peer for peer in self._peers.values() if not peer.busy and now >= peer.next_try]
            for peer in due:
                peer.busy, peer.again = True, False
        for peer in gone:
            if peer.link is not None:
                peer.link.close()
        for peer in due:
            if not self._closing:
                self._dials.submit(self._greet, peer)

    def _greet(self, peer: _Peer) -> None:
        new = False
        try:
            link = self._link(peer)
            hello = p.Hello(addresses=self.addresses(), known=self.book.known(), have=self.have())
            reply, _ = link.ask(hello, timeout=GREET_TIMEOUT_S)
            if not isinstance(reply, p.Greeting):
                raise UntrustedInputError("a peer's reply does not fit the request")
            new = peer.greeted_at is None
            peer.greeted_at, peer.failures = time.monotonic(), 0
            pause = GREET_EVERY_S
            if self._lacks(reply.have):
                self._pull(link)
            self.met(peer.keys, reply.addresses, reply.known, {})
        except VaultError as e:
            _log.debug("peer %s: %s", peer.keys.device, e)
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**peer.failures)
            self._drop_link(peer)
            peer.failures = min(peer.failures + 1, 10)
        except Exception:
            _log.exception("peers: greeting failed unexpectedly")
            pause = LONGEST_PAUSE_S
        with self._lock:
            peer.next_try = 0.0 if peer.again else time.monotonic() + pause
            peer.busy = False
        if new:
            for callback in self._on_greeted:
                callback()

    def dial_bulk(self, keys: DeviceKeys) -> int:
        """The local port that leads to a device's bulk door. Raises TransportError."""
        return self._tunnels.dial(keys.peer_id, BULK)

    def _drop_link(self, peer: _Peer) -> None:
        """A link that failed is made anew: what refused it once is not asked again by ZeroMQ."""
        with self._lock:
            link, peer.link, peer.greeted_at = peer.link, None, None
        if link is not None:
            link.close()

    def _link(self, peer: _Peer) -> PeerLink:
        peer_id = peer.keys.peer_id
        if peer_id not in self._underlay.peers():
            for address in self.book.of(peer_id):
                try:
                    self._underlay.connect(f"{address}/p2p/{peer_id}")
                    break
                except TransportError:
                    continue
            else:
                raise TransportError("the other node is at none of its known addresses")
        if peer.link is None:
            link = PeerLink(self._tunnels.dial(peer_id), server_key=peer.keys.bus, keys=self._keys)
            with self._lock:
                peer.link = link
        return peer.link

    # -- batches ------------------------------------------------------------------------------------------------

    def _pull(self, link: PeerLink) -> None:
        """Ask for everything that the other has and we have not, in parts."""
        have = self.have()
        for _ in range(PULL_ROUNDS):
            reply, envelopes = link.ask(p.Pull(have=have), timeout=GREET_TIMEOUT_S * 2)
            if not isinstance(reply, p.Batches):
                raise UntrustedInputError("a peer's reply does not fit the request")
            if envelopes:
                self._log.reconciler.accept(envelopes)
            before, have = have, self.have()
            if not reply.more or have == before or self._closing:
                return

    def batches_beyond(self, have: p.Have) -> tuple[list[bytes], bool]:
        """Batches that somebody lacks, causes first, as many as fit one message; and whether there are more."""
        devices = {k.device for k in self._log.membership().keys.values()}
        return _fitting(self._log.index.envelopes_beyond(have, devices, p.PAYLOAD_FRAMES + 1))

    def _pass_on(self) -> None:
        while not self._closing:
            self._grown.wait()
            self._grown.clear()
            try:
                self._push()
            except VaultError as e:
                _log.warning("peers: %s", e)

    def _push(self) -> None:
        """Send this device's new batches to every device that answers; who misses it catches up by greeting."""
        while not self._closing:
            beyond = self._log.index.envelopes_beyond({self._device: self._pushed}, [self._device], p.PAYLOAD_FRAMES)
            envelopes, _ = _fitting(beyond)
            if not envelopes:
                return
            for _, link in self.links():
                link.send(p.Push(), envelopes, timeout=PUSH_TIMEOUT_S)
            self._pushed += len(envelopes)


def _fitting(envelopes: Sequence[bytes]) -> tuple[list[bytes], bool]:
    """As many as one message holds, at least one; and whether any are left."""
    size, count = 0, 0
    for envelope in envelopes[: p.PAYLOAD_FRAMES]:
        size += len(envelope)
        if count and size > p.BATCH_BYTES:
            break
        count += 1
    return list(envelopes[:count]), count < len(envelopes)
