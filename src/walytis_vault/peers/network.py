"""Links to the other members' devices: dial, greet, catch up with each other, pass new batches on.

Who the others are is what the log says, now. A device that does not answer is tried again after growing pauses, and
one that answers slowly holds up no other: who is dialled, who is greeted and who is caught up with wait in different
lines. Batches that come this way are judged like those of the chain.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

from walytis_vault.adapters.exchange.tunnels import BULK, PeerTunnels
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.security import BusKeys
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.errors import BusyError, StorageError, TransportError, UntrustedInputError, VaultError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.peers import protocol as p
from walytis_vault.peers.addresses import AddressBook, own_addresses
from walytis_vault.peers.batches import Batches, fitting
from walytis_vault.peers.link import PeerLink, Replied, settle

ASK_AGAIN_S: Final = 2.0
"""How long others are left alone after they were asked for what a batch lacks: strangers can invent such batches."""
GREET_EVERY_S: Final = 10.0
GREET_TIMEOUT_S: Final = 5.0
STALE_S: Final = 25.0
"""A device that did not answer for so long counts as gone."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
TICK_S: Final = 1.0
DIALS: Final = 4
"""Devices that are dialled at once (a count)."""
DIAL_S: Final = 15.0
"""Time after which no further address of a device is tried."""
GREETERS: Final = 2
"""Threads that say hello and take the answers (a count); none of them waits for a peer."""
PULLS: Final = 4
"""Devices that are caught up with at once (a count)."""
PULL_S: Final = 10.0
"""Time for one turn of catching up with one device, and for each of its answers; then others have theirs."""
BUSY_S: Final = 1.0
"""Pause after a node, this one or the other, was busy."""
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
        self.greeted = False
        """Whether this link was answered on."""
        self.next_try = 0.0
        self.failures = 0
        self.busy = False
        """Whether it is dialled or greeted now."""
        self.pulled = False
        """Whether it is being caught up with, or waits in line for that."""
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
        self.batches = Batches(log)
        self._peers: dict[bytes, _Peer] = {}
        self._lock = threading.Lock()
        self._on_greeted: list[Callable[[], None]] = []
        self._closing = False
        self._asked_at = 0.0
        self._wake, self._grown = threading.Event(), threading.Event()
        self._dials = ThreadPoolExecutor(DIALS, thread_name_prefix="peer-dial")
        self._greeters = ThreadPoolExecutor(GREETERS, thread_name_prefix="peer-greet")
        self._pulls = ThreadPoolExecutor(PULLS, thread_name_prefix="peer-pull")
        self._threads = [
            threading.Thread(target=self._keep_up, name="peer-network", daemon=True),
            threading.Thread(target=self._pass_on, name="peer-push", daemon=True),
        ]

    def start(self) -> None:
        """Begin to dial, and to pass on what this node records from now on."""
        self._pushed = self._log.index.last_numbers([self._device]).get(self._device, 0)
        self._log.index.listen(self._wake)
        self._log.index.listen(self._grown)
        self._log.reconciler.on_missing(self._ask_all)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Close all links. Bounded."""
        self._closing = True
        self._log.index.unlisten(self._wake)
        self._log.index.unlisten(self._grown)
        self._wake.set()
        self._grown.set()
        for pool in (self._dials, self._greeters, self._pulls):
            pool.shutdown(wait=False, cancel_futures=True)
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

    def devices_of(self, bus_key: bytes) -> list[DeviceKeys]:
        """The current members' devices that announced a CURVE key; none for anybody else.

        A device may have announced another's key: only its owner can use it.
        """
        return [keys for keys in self._devices() if keys.bus == bus_key]

    def links(self) -> list[tuple[DeviceKeys, PeerLink]]:
        """Devices that answer now, and the links to them."""
        now = time.monotonic()
        with self._lock:
            return [
                (peer.keys, peer.link)
                for peer in self._peers.values()
                if peer.link is not None and peer.greeted and now - peer.link.heard_at < STALE_S
            ]

    def connected(self) -> tuple[str, ...]:
        """DIDs of the devices that answer now, sorted."""
        return tuple(sorted(keys.device for keys, _ in self.links()))

    def addresses(self) -> p.Addresses:
        """Where this node is, without /p2p/…"""
        return own_addresses(self._underlay.addresses, self._underlay.mode)

    def known(self) -> p.Known:
        """Where other current members' devices are, as far as that fits a message."""
        members = {k.peer_id for k in self._devices()}
        return p.fitting_known({i: found for i, found in self.book.known().items() if i in members})

    def met(self, keys: DeviceKeys, addresses: p.Addresses, known: p.Known, have: p.Have) -> None:
        """A device said hello, or answered: learn where it and others are; ask for what it has and we have not."""
        self.book.learn(keys.peer_id, addresses)
        members = {k.peer_id for k in self._devices()}
        for peer_id, theirs in known.items():
            if peer_id in members and peer_id != keys.peer_id:
                self.book.learn(peer_id, theirs, hearsay=True)
        with self._lock:
            peer = self._peers.get(key_id_of_device(keys))
            unanswered = peer is not None and not peer.greeted and not peer.busy
        # It is there after all, or it has what we lack.
        if unanswered or self.batches.lacks(have):
            self.greet_soon(keys)

    def greet_soon(self, keys: DeviceKeys) -> None:
        """Greet a device now, and catch up with it."""
        with self._lock:
            peer = self._peers.get(key_id_of_device(keys))
            if peer is not None:
                peer.next_try, peer.again = 0.0, True
        self._wake.set()

    def _ask_all(self) -> None:
        """A batch came whose cause is not here: greet those who are there, unless that was just done."""
        now = time.monotonic()
        with self._lock:
            if now < self._asked_at + ASK_AGAIN_S:
                return
            self._asked_at = now
            for peer in self._peers.values():
                if peer.link is not None:
                    peer.next_try, peer.again = 0.0, True
        self._wake.set()

    def _devices(self) -> list[DeviceKeys]:
        """Every device of every current member, as announced and not superseded."""
        return self._log.membership().standing()

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
        there = set(self._underlay.peers()) if due else set()
        for peer in due:
            linked = peer.link is not None and peer.keys.peer_id in there
            self._submit(self._greeters if linked else self._dials, self._greet, peer, linked)

    def _submit(self, pool: ThreadPoolExecutor, task: Callable[..., None], peer: _Peer, *given: object) -> None:
        with contextlib.suppress(RuntimeError):  # closing
            pool.submit(self._guarded, task, peer, *given)

    def _guarded(self, task: Callable[..., None], peer: _Peer, *given: object) -> None:
        try:
            task(peer, *given)
        except Exception:
            _log.exception("peers: %s failed unexpectedly", task.__name__)
            self._greeted(peer, LONGEST_PAUSE_S)

    def _greet(self, peer: _Peer, linked: bool) -> None:
        """Say hello, after dialling if need be. The answer is waited for by nobody: it comes to `_answered`."""
        link = peer.link
        try:
            if link is None or not linked:
                link = self._dial(peer)
            have, rest = p.have_parts(self.batches.have())
            hello = p.Hello(addresses=self.addresses(), known=self.known(), have=have)
            said = link.send(hello, rest, timeout=GREET_TIMEOUT_S)
        except VaultError as e:
            self._greeted(peer, self._failed(peer, link, e))
            return
        said.add_done_callback(lambda _: self._submit(self._greeters, self._answered, peer, link, said))

    def _answered(self, peer: _Peer, link: PeerLink, said: Future[Replied]) -> None:
        new, pause = False, GREET_EVERY_S
        try:
            reply, rest = settle(said, 0.0)
            if not isinstance(reply, p.Greeting):
                raise UntrustedInputError("a peer's reply does not fit the request")
            have = p.whole_have(reply.have, rest)
            with self._lock:
                if peer.link is link:
                    new, peer.greeted, peer.failures = not peer.greeted, True, 0
            self.met(peer.keys, reply.addresses, reply.known, {})
            if self.batches.lacks(have):
                self._pull_soon(peer)
        except VaultError as e:
            pause = self._failed(peer, link, e)
        self._greeted(peer, pause)
        if new:
            for callback in self._on_greeted:
                callback()

    def _greeted(self, peer: _Peer, pause: float) -> None:
        with self._lock:
            peer.next_try = 0.0 if peer.again else time.monotonic() + pause
            peer.busy = False
            wake = peer.again
        if wake:
            self._wake.set()

    def _failed(self, peer: _Peer, link: PeerLink | None, error: VaultError) -> float:
        """What a failure means for a link; return how long to wait before the next attempt."""
        _log.debug("peer %s: %s", peer.keys.device, error)
        if isinstance(error, BusyError | StorageError):
            # The link is as good as before, whichever of the two nodes has no time, or no room on its disk.
            return BUSY_S if isinstance(error, BusyError) else GREET_EVERY_S
        # A link that failed is made anew: what refused it once is not asked again by ZeroMQ.
        with self._lock:
            if peer.link is link:
                peer.link, peer.greeted = None, False
            peer.failures = min(peer.failures + 1, 10)
        if link is not None:
            link.close()
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * (1 << peer.failures - 1))

    def dial_bulk(self, keys: DeviceKeys) -> int:
        """The local port that leads to a device's bulk door. Raises TransportError."""
        return self._tunnels.dial(keys.peer_id, BULK)

    def _dial(self, peer: _Peer) -> PeerLink:
        peer_id, until = peer.keys.peer_id, time.monotonic() + DIAL_S
        if peer_id not in self._underlay.peers():
            for address in self.book.of(peer_id):
                try:
                    self._underlay.connect(f"{address}/p2p/{peer_id}")
                    break
                except TransportError:
                    if time.monotonic() > until:
                        raise
            else:
                raise TransportError("the other node is at none of its known addresses")
        if peer.link is not None:
            return peer.link
        link = PeerLink(self._tunnels.dial(peer_id), server_key=peer.keys.bus, keys=self._keys)
        with self._lock:
            # Whoever was removed meanwhile, or when this node closes, is looked after by nobody any more.
            wanted = self._peers.get(key_id_of_device(peer.keys)) is peer
            if wanted:
                peer.link = link
        if not wanted:
            link.close()
            raise TransportError("this device is not wanted any more")
        return link

    # -- batches ------------------------------------------------------------------------------------------------

    def _pull_soon(self, peer: _Peer) -> None:
        """Catch up with a device when it is its turn."""
        with self._lock:
            waits, peer.pulled = peer.pulled, True
        if not waits:
            self._submit(self._pulls, self._catch_up, peer)

    def _catch_up(self, peer: _Peer) -> None:
        more, link = False, peer.link
        try:
            if link is not None:
                more = self.batches.pull(link, PULL_S, lambda: self._closing)
        except VaultError as e:
            pause = self._failed(peer, link, e)
            with self._lock:
                peer.next_try = time.monotonic() + pause
        finally:
            with self._lock:
                peer.pulled = False
        if more:
            self._pull_soon(peer)

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
            envelopes, _ = fitting(beyond)
            if not envelopes:
                return
            for _, link in self.links():
                link.send(p.Push(), envelopes, timeout=PUSH_TIMEOUT_S)
            self._pushed += len(envelopes)
