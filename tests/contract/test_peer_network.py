"""Links to other devices over real doors: who is slow, busy, gone or has very many devices holds up nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from zmq.utils import z85

from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.bus.security import make_keys
from walytis_vault.domain.errors import BusyError, StorageError, TransportError, VaultError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.peers import network as net
from walytis_vault.peers import protocol as p
from walytis_vault.peers.addresses import AddressBook
from walytis_vault.peers.door import PeerDoor
from walytis_vault.peers.link import PeerLink
from walytis_vault.peers.network import PeerNetwork

PATIENCE_S = 30.0
LONG_DID = "did:test:" + "x" * 400
Answer = Callable[[p.Request, dict[str, int]], tuple[p.Reply, Sequence[bytes]]]


def eventually(look: Callable[[], object], what: str) -> None:
    """Wait until it is so; bounded."""
    pause, until = threading.Event(), time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < until, f"it did not come to pass: {what}"
        pause.wait(0.02)


class Log:
    """A log that holds who the members' devices are, and counts batches; it is reconciler, index and membership."""

    def __init__(self) -> None:
        self.index = self.reconciler = self
        self.devices: list[DeviceKeys] = []
        self.numbers: dict[str, int] = {}
        self.failures: list[VaultError] = []
        self._lock = threading.Lock()

    def membership(self) -> Log:
        """See `VaultLog`."""
        return self

    def standing(self) -> list[DeviceKeys]:
        """See `Membership`."""
        return list(self.devices)

    @property
    def keys(self) -> dict[int, DeviceKeys]:
        """See `Membership`."""
        return dict(enumerate(self.devices))

    def last_numbers(self, devices: object) -> dict[str, int]:
        """See `LogIndex`; devices that are in the log alone count too."""
        return dict(self.numbers)

    def accept(self, envelopes: Sequence[bytes]) -> bool:
        """See `Reconciler`: an envelope here is the DID of its author."""
        with self._lock:
            if self.failures:
                raise self.failures.pop()
            for envelope in envelopes:
                self.numbers[envelope.decode()] = self.numbers.get(envelope.decode(), 0) + 1
        return False

    def envelopes_beyond(self, *_: object) -> list[bytes]:
        """See `LogIndex`: this device writes nothing."""
        return []

    def listen(self, _wake: threading.Event) -> None:
        """The network looks every second anyway."""

    def on_missing(self, callback: Callable[[], None]) -> None:
        """See `Reconciler`; the test calls it."""
        self.missing = callback

    def unlisten(self, _wake: threading.Event) -> None:
        """Nothing to end."""


class Other:
    """Another device: a real door, and what it answers."""

    def __init__(self, world: World, name: str, did: str | None = None) -> None:
        self.world, self.did = world, did or f"did:test:{name}"
        self.has = 0
        self.heard: list[dict[str, int]] = []
        self.known: p.Known = {}
        self.pulls = self.pulled = 0
        self.holds = threading.Event()
        """Pulls are answered once this is set."""
        self.holds.set()
        keys = make_keys()
        self.door = PeerDoor(keys.secret.encode(), admits=lambda _key: True, answer=self._answer)
        self.door.start()
        self.keys = DeviceKeys(
            member=self.did, device=self.did, ed25519=name.encode().ljust(32), ml_dsa_65=bytes(1952),
            bus=z85.decode(keys.public.encode()), peer_id=f"peer-{name}",
        )  # fmt: skip

    def _answer(self, _key: bytes, request: p.Request, payload: Sequence[bytes]) -> tuple[p.Reply, Sequence[bytes]]:
        if isinstance(request, p.Hello):
            self.heard.append(dict(p.whole_have(request.have, payload)))
            self.known = request.known
            first, rest = p.have_parts({**self.heard[-1], self.did: self.has})
            return p.Greeting(addresses=(), known={}, have=first), rest
        assert isinstance(request, p.Pull)
        have = p.whole_have(request.have, payload).get(self.did, 0)
        self.pulls += 1
        assert self.holds.wait(PATIENCE_S)
        self.pulled += 1
        return p.Batches(more=have + 1 < self.has), [self.did.encode()] if have < self.has else []


class World:
    """One network under test and the devices that it finds; it is underlay and tunnels too."""

    mode = "loopback"
    addresses: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/1",)

    def __init__(self, folder: Path) -> None:
        self.log = Log()
        self.others: dict[str, Other] = {}
        self.unreachable: dict[str, threading.Event] = {}
        """Peer ids that are dialled for as long as the event is not set."""
        self.book = AddressBook(folder / "addresses.json", OsFileSystem())
        parts = cast("tuple[Any, Any, Any]", (self, self, self.log))
        self.network = PeerNetwork(*parts, self.book, device="did:test:me", keys=make_keys())

    def add(self, name: str, *, did: str | None = None, **given: object) -> Other:
        """A device comes into the vault."""
        other = Other(self, name, did)
        for what, value in given.items():
            setattr(other, what, value)
        self.others[other.keys.peer_id] = other
        self.log.devices.append(other.keys)
        return other

    def peers(self) -> list[str]:
        """See `Underlay`."""
        return [i for i in self.others if i not in self.unreachable]

    def connect(self, multiaddr: str) -> None:
        """See `Underlay`."""
        self.unreachable[multiaddr.rpartition("/")[2]].wait(PATIENCE_S)

    def dial(self, peer_id: str) -> int:
        """See `PeerTunnels`."""
        if peer_id not in self.others:
            raise TransportError("nobody")
        return self.others[peer_id].door.port

    def linked(self, other: Other) -> PeerLink | None:
        """The link to a device that answers."""
        return next((link for keys, link in self.network.links() if keys.device == other.did), None)

    def close(self) -> None:
        """Let everything end."""
        for event in [*self.unreachable.values(), *(other.holds for other in self.others.values())]:
            event.set()
        self.network.close()
        for other in self.others.values():
            other.door.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A vault in which nobody else is, yet; the network is started by the test."""
    made = World(tmp_path)
    yield made
    made.close()


@pytest.mark.long
def test_devices_that_deliver_slowly_cut_nobody_off(world: World) -> None:
    """While more devices than can be caught up with at once keep us waiting, another one is met and stays in reach."""
    slow = [world.add(f"slow{n}", has=9) for n in range(net.PULLS + 2)]
    for other in slow:
        other.holds.clear()
    world.network.start()
    eventually(lambda: sum(other.pulls for other in slow) >= net.PULLS, "all who pull are kept waiting")
    honest = world.add("honest")
    eventually(lambda: world.linked(honest), "the honest device is linked")
    assert not any(other.pulled for other in slow)


def test_catching_up_with_one_gives_way_to_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that always has one more batch does not keep us from catching up with the next in line."""
    monkeypatch.setattr(net, "PULL_S", 2.0)
    world.network._pulls._max_workers = 1
    endless = world.add("endless", has=1 << 40)
    world.network.start()
    eventually(lambda: endless.pulls > 3, "it is caught up with")
    other = world.add("other", has=3)
    eventually(lambda: world.log.numbers.get(other.did) == 3, "the other is caught up with too")
    before = endless.pulls
    eventually(lambda: endless.pulls > before, "and the endless one goes on")


def test_a_batch_that_lacks_its_cause_makes_the_others_be_asked_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause comes without waiting for the next regular greeting, and invented batches cause no flood of them."""
    monkeypatch.setattr(net, "GREET_EVERY_S", 3600.0)
    monkeypatch.setattr(net, "ASK_AGAIN_S", 3600.0)
    other = world.add("other")
    world.network.start()
    eventually(lambda: world.linked(other) and len(other.heard) == 1, "it is greeted")
    other.has = 2
    for _ in range(100):
        world.log.missing()
    eventually(lambda: world.log.numbers.get(other.did) == 2, "what it has is here")
    assert len(other.heard) == 2


def test_a_device_that_answers_anything_is_there(world: World) -> None:
    """Whoever answers does not count as gone, however long ago it was greeted."""
    other = world.add("other")
    world.network.start()
    eventually(lambda: world.linked(other), "it is linked")
    link = world.linked(other)
    assert link is not None
    link.heard_at -= net.STALE_S
    if world.linked(other) is None:
        link.ask(p.Pull(have={}), timeout=PATIENCE_S)
    assert world.linked(other) is link


@pytest.mark.parametrize("failure", [BusyError("this node is catching up"), StorageError("the disk is full")])
def test_what_fails_here_is_not_held_against_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch, failure: VaultError
) -> None:
    """A node that has no time, or no room, for a peer's batches keeps the link and asks again later."""
    monkeypatch.setattr(net, "BUSY_S", 0.05)
    monkeypatch.setattr(net, "GREET_EVERY_S", 0.05)
    other = world.add("other")
    world.network.start()
    eventually(lambda: world.linked(other), "it is linked")
    link = world.linked(other)
    world.log.failures = [failure] * 3
    other.has = 2
    eventually(lambda: world.log.numbers.get(other.did) == 2, "its batches are here at last")
    assert not world.log.failures
    assert world.linked(other) is link


def test_a_device_that_leaves_while_it_is_dialled_leaves_no_link(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link to a device that was removed in the meantime is closed, not forgotten."""
    made: list[PeerLink] = []

    def make(*args: Any, **given: Any) -> PeerLink:
        made.append(PeerLink(*args, **given))
        return made[-1]

    monkeypatch.setattr(net, "PeerLink", make)
    other = world.add("other")
    dialled = world.unreachable[other.keys.peer_id] = threading.Event()
    world.book.learn(other.keys.peer_id, world.addresses)
    world.network.start()
    eventually(lambda: world.network._peers, "it is looked after")
    eventually(lambda: all(peer.busy for peer in world.network._peers.values()), "it is dialled")
    world.log.devices.clear()
    eventually(lambda: not world.network._peers, "it is looked after no more")
    dialled.set()
    eventually(lambda: made and not made[-1]._thread.is_alive(), "its link is closed")


def test_very_many_devices_keep_nobody_from_greeting(world: World) -> None:
    """What is here of thousands of devices is told whole, however long their names and however many are known."""
    world.log.numbers = {f"{LONG_DID}{n}": n + 1 for n in range(5000)}
    long = tuple(f"/dns4/{n}{'y' * 240}/tcp/1" for n in range(8))
    for n in range(300):
        world.book._known[f"peer-{n}"] = long
    crowd = [DeviceKeys(**{**_plain(n), "peer_id": f"peer-{n}"}) for n in range(300)]
    other = world.add("other", has=1)
    world.log.devices += crowd
    world.network.start()
    eventually(lambda: world.linked(other), "it is greeted")
    eventually(lambda: world.log.numbers.get(other.did) == 1, "it is caught up with")
    assert other.heard[0] == {f"{LONG_DID}{n}": n + 1 for n in range(5000)}
    assert other.known


def _plain(number: int) -> dict[str, Any]:
    key = number.to_bytes(32, "big")
    return {
        "member": "did:crowd",
        "device": f"did:crowd:{number}",
        "ed25519": key,
        "ml_dsa_65": bytes(1952),
        "bus": key,
    }
