"""A disk that fails once, at every call of publishing and forgetting, then a kill, a restart and the same request.

What was acknowledged reads back, whatever failed before; what was forgotten stays so; nothing is published twice.
"""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from support.content_stores import open_store
from support.faulty_files import FaultPlan, FaultyFileSystem, faulty_sqlite
from support.log_world import GROUP, Device, founded
from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.system import SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.messages import InlinePublish, Published, PublishOptions, RequestKey
from walytis_vault.commands import Commands
from walytis_vault.domain.errors import StorageError, VaultError
from walytis_vault.domain.ids import ContentId
from walytis_vault.eraser import Eraser
from walytis_vault.home import VaultConfig
from walytis_vault.publishing import Publication
from walytis_vault.publishing_together import publish_together
from walytis_vault.reading import read_state

FULL, BROKEN = errno.ENOSPC, errno.EIO
Case = tuple[int, tuple[str, ...]]
"""The error, and the calls that meet it; () for all."""
CASES = [
    pytest.param((BROKEN, ("fsync", "fdatasync", "fsync_folder", "sqlite sync")), id="broken-syncs"),
    pytest.param((BROKEN, ()), id="broken", marks=pytest.mark.long),
    pytest.param((FULL, ()), id="full", marks=pytest.mark.long),
]
FOUNDING_EVENTS = 2


class Machine:
    """Store, log and commands of a vault of one on real files; the chain is in memory and survives every kill."""

    def __init__(self, folder: Path, plan: FaultPlan) -> None:
        self.folder = folder
        self._plan = plan
        self._starts = 0
        self._device = Device("a")
        self._chain = MemoryNetwork(1).replica("a")
        self._root = founded(self._chain, self._device)
        folder.mkdir(parents=True)
        self.start()

    def start(self) -> None:
        """Open everything, as the composition root does, and finish what an earlier start left."""
        clock, randomness = SystemClock(), SystemRandomness()
        self.store = open_store(self.folder, fs=FaultyFileSystem(self._plan))
        self.log = VaultLog(
            Database(self.folder / "log.sqlite"),
            self._chain,
            self._device.signer,
            HybridVerifier(),
            device=self._device.device,
            root=self._root,
            clock=clock,
        )
        self.log.start()
        self.eraser = Eraser(
            self.log.recorder,
            self.store,
            device=self._device.device,
            clock=clock,
            drop_from_views=lambda _: None,
            make_room=self.store.make_room,
            unpublished=self.store.content_ids(),
        )
        self.eraser.look()
        config = VaultConfig(
            format=1,
            group=GROUP,
            created_ms=0,
            vault_id=self._chain.chain_id,
            root=self._root,
            member=self._device.member,
            device=self._device.device,
            name="vault",
            network="loopback",
        )
        self.commands = Commands(config, self.log, self.store, self.eraser, clock=clock, randomness=randomness)

    def kill(self) -> None:
        """Go on from what the files hold at this moment, with a process that never closed them."""
        self._starts += 1
        killed = self.folder.with_name(f"{self.folder.name}-{self._starts}")
        shutil.copytree(self.folder, killed)
        self.close()
        self.folder = killed
        self.start()

    def close(self) -> None:
        """Release threads and files."""
        self.log.close()
        self.store.close()

    def publish(self, data: bytes, request_id: bytes) -> str:
        """Publish alone; returns the content id."""
        key = RequestKey(client="c", request_id=request_id, digest=b"d" * 32, sealed=b"s" * 32)
        if (kept := self.commands._kept(key)) is not None:
            published = msgspec.msgpack.decode(kept, type=Published)
            self.log.wait_for(published.position)
            return published.content_id
        session = Publication(
            self.log.recorder,
            self.store,
            vault_id=self.log.chain.chain_id,
            author=self._device.member,
            nonce=secrets.token_bytes(16),
            options=PublishOptions(name="n"),
            key=key,
        )
        try:
            session.write(data)
        except VaultError:
            session.abort()
            raise
        return session.commit().content_id

    def publish_together(self, data: bytes, request_id: bytes) -> str:
        """Publish as one of three that share their wait; returns the content id."""
        ids = [request_id, secrets.token_bytes(16), secrets.token_bytes(16)]
        wanted = [
            InlinePublish(
                options=PublishOptions(name="n"),
                data=data,
                key=RequestKey(client="c", request_id=i, digest=b"d" * 32, sealed=b"s" * 32),
            )
            for i in ids
        ]
        results = publish_together(
            self.log,
            self.store,
            wanted,
            vault_id=self.log.chain.chain_id,
            author=self._device.member,
            clock=SystemClock(),
            randomness=SystemRandomness(),
        )
        if isinstance(results[0], VaultError):
            raise results[0]
        return results[0].content_id

    def forget(self, content_id: str, request_id: bytes) -> None:
        """Forget one content with a reason."""
        key = RequestKey(client="c", request_id=request_id, digest=b"f" * 32, sealed=b"r" * 32)
        assert self.commands.forget((content_id,), "a reason", key).state == "carried"

    def read(self, content_id: str) -> bytes:
        """The whole content, by what the log says of it."""
        wanted = ContentId(bytes.fromhex(content_id))
        reading = read_state(self.log.recorder, [wanted])
        event = reading.published[wanted]
        descriptor = self.store.open_descriptor(wanted, event.descriptor)
        assert descriptor is not None, "the key of an acknowledged content is gone"
        reader = self.store.reader(
            wanted,
            author=self._device.member,
            root=event.root,  # type: ignore[arg-type]
            length=descriptor.length,
            padded_length=event.padded_length,
        )
        pieces = []
        while piece := reader.read():
            pieces.append(piece)
        reader.close()
        return b"".join(pieces)

    def consistent(self) -> None:
        """Every content of the log is here whole or erased, and the store holds nothing that the log does not know."""
        on_log = [e for e in self.log.recorder.read() if e.event.type == "content-published/1"]
        tags = {tag for e in on_log for tag in e.event.tags}
        assert {f"content:{c.hex()}" for c in self.store.content_ids()} <= tags
        for tag in tags:
            content_id = tag.removeprefix("content:")
            if not self.store.erased(ContentId(bytes.fromhex(content_id))):
                self.read(content_id)


@pytest.fixture
def plan() -> Iterator[FaultPlan]:
    """Faults for the file system and for SQLite together."""
    made = FaultPlan()
    made.real_syncs = False
    with faulty_sqlite(made):
        yield made


def each_call(
    tmp_path: Path,
    plan: FaultPlan,
    case: Case,
    prepare: Callable[[Machine], None],
    action: Callable[[Machine], None],
) -> Iterator[tuple[Machine, VaultError | None]]:
    """Run `action` on fresh machines, each with another one of its calls to the disk failing.

    Yields the machine after the failure, a kill and a restart; and the error.
    """
    error, wanted = case
    plan.count_only()
    machine = Machine(tmp_path / "counted", plan)
    prepare(machine)
    plan.count_only()
    action(machine)
    numbers = [n for n, call in enumerate(plan.calls) if not wanted or call in wanted]
    machine.close()
    assert numbers, "the action made no calls: the faults are not wired up"
    for number in numbers:
        plan.count_only()
        machine = Machine(tmp_path / str(number), plan)
        prepare(machine)
        plan.fail_call(number, error)
        caught: VaultError | None = None
        try:
            action(machine)
        except VaultError as e:
            caught = e
        assert caught is None or isinstance(caught, StorageError), plan.failed
        plan.count_only()
        machine.kill()
        yield machine, caught
        machine.consistent()
        machine.close()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("together", [True, False])
def test_publishing(tmp_path: Path, plan: FaultPlan, case: Case, together: bool) -> None:
    """Whichever call fails: what the same request is told after a restart reads back, and it took effect once."""
    request_id, data = secrets.token_bytes(16), secrets.token_bytes(700 if together else 200_000)
    done: list[str] = []

    def publish(machine: Machine) -> None:
        done.clear()
        done.append((machine.publish_together if together else machine.publish)(data, request_id))

    for machine, caught in each_call(tmp_path, plan, case, lambda _: None, publish):
        assert (caught is None) == bool(done)
        before = done[0] if done else None
        publish(machine)
        assert before in (None, done[0])
        assert machine.read(done[0]) == data
        events = machine.log.index.horizon - FOUNDING_EVENTS
        publish(machine)
        assert machine.log.index.horizon - FOUNDING_EVENTS <= events + 2 * together, "published twice"
        machine.kill()
        assert machine.read(done[0]) == data


@pytest.mark.parametrize("case", CASES)
def test_forgetting(tmp_path: Path, plan: FaultPlan, case: Case) -> None:
    """Whichever call fails: the same request after a restart forgets, for ever; what else was published stays."""
    request_id, data = secrets.token_bytes(16), secrets.token_bytes(700)
    ids: list[str] = []

    def prepare(machine: Machine) -> None:
        ids[:] = [machine.publish(data, secrets.token_bytes(16)) for _ in range(2)]

    def forget(machine: Machine) -> None:
        machine.forget(ids[0], request_id)

    for machine, caught in each_call(tmp_path, plan, case, prepare, forget):
        victim = ContentId(bytes.fromhex(ids[0]))
        assert caught is not None or machine.store.erased(victim)
        forget(machine)
        for _ in range(2):
            assert machine.store.erased(victim)
            assert machine.store.content_key(victim) is None
            assert machine.read(ids[1]) == data
            machine.kill()


@pytest.mark.parametrize("case", CASES)
def test_a_retry(tmp_path: Path, plan: FaultPlan, case: Case) -> None:
    """Whichever call of the retry fails: another retry after a restart gets the first receipt, which reads back."""
    request_id, data = secrets.token_bytes(16), secrets.token_bytes(700)
    ids: list[str] = []

    def prepare(machine: Machine) -> None:
        # The reply is lost: the first attempt took effect, and the client does not know.
        ids[:] = [machine.publish_together(data, request_id)]

    def retry(machine: Machine) -> None:
        assert machine.publish_together(data, request_id) == ids[0]

    for machine, _ in each_call(tmp_path, plan, case, prepare, retry):
        retry(machine)
        assert machine.read(ids[0]) == data
