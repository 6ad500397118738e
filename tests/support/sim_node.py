"""One node of the simulation: the product's log, ballots, erasure, views and peer desk, with chain, clock and chance
of the simulation's, and no thread that acts by itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

from walytis_vault.adapters.crypto.ciphertext_root import split_leaves
from walytis_vault.adapters.crypto.content_cipher import ContentDecryptor, ciphertext_length, content_context
from walytis_vault.adapters.crypto.descriptor import Descriptor
from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.exchange.key_transfer import NONCE_BYTES, OpenRequest
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.memory_store import MemoryContentStore
from walytis_vault.adapters.storage.view_store import TemporaryViewStore
from walytis_vault.adapters.walytis.block_keeper import BlockKeeper
from walytis_vault.adapters.walytis.memory_chain import MemoryChain
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.commands import Commands
from walytis_vault.domain import events as ev
from walytis_vault.domain.claims import device_name, prove_possession
from walytis_vault.domain.contents import decide_revise
from walytis_vault.domain.errors import ForgottenError
from walytis_vault.domain.ids import BatchId, ContentId, Root
from walytis_vault.eraser import Eraser
from walytis_vault.home import HOME_FORMAT, VaultConfig
from walytis_vault.peers import protocol as p
from walytis_vault.peers.desk import PeerDesk
from walytis_vault.projections.base import Local
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import OWN
from walytis_vault.publishing import Terms, event_of
from walytis_vault.reading import Reading, read_state

YEARS_10_MS = 10 * 365 * 24 * 3600 * 1000


class SimClock:
    """A wall clock that is wrong by up to ten years, and a monotonic one; both move when the simulation says so."""

    def __init__(self, chance: random.Random) -> None:
        self.skew_ms = chance.randrange(-YEARS_10_MS, YEARS_10_MS)
        self.now = 0.0

    def wall_ms(self) -> int:
        """See `Clock`."""
        return 1_800_000_000_000 + self.skew_ms + int(self.now * 1000)

    def monotonic(self) -> float:
        """See `Clock`."""
        return self.now


class SimRandomness:
    """Tokens from a seed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def token(self, size: int) -> bytes:
        """See `Randomness`."""
        return self._chance.randbytes(size)


class SimDevice:
    """A member with one device, whose keys follow from its name."""

    def __init__(self, name: str, vault_id: str) -> None:
        seed = hashlib.sha512(b"simulated device " + name.encode()).digest()
        self.name = name
        self.signer = HybridSigner.from_private_bytes(seed)
        self.did = device_name(f"did:sim:{name}", self.signer.key_id)
        keys = ev.DeviceKeys(
            member=self.did, device=self.did, ed25519=self.signer.ed25519_public,
            ml_dsa_65=self.signer.ml_dsa_65_public, bus=hashlib.sha256(seed).digest(), peer_id=f"peer-{name}",
        )  # fmt: skip
        self.keys = prove_possession(keys, vault_id, self.signer)


class _Book:
    def known(self) -> Mapping[str, tuple[str, ...]]:
        """Nobody needs addresses here."""
        return {}


class SimPeers:
    """What the desk asks of the network: who is behind a key, and which batches somebody lacks."""

    def __init__(self, log: VaultLog) -> None:
        self._log, self.book = log, _Book()

    def devices_of(self, bus_key: bytes) -> list[ev.DeviceKeys]:
        """See `PeerNetwork.devices_of`."""
        return [keys for keys in self._log.membership().standing() if keys.bus == bus_key]

    def greet_soon(self, keys: ev.DeviceKeys) -> None:
        """The simulation decides when nodes catch up with each other."""


class SimNode:
    """See the module. Everything happens in the thread that calls."""

    def __init__(
        self, folder: Path, chain: MemoryChain, device: SimDevice, root: BatchId, chance: random.Random
    ) -> None:
        """A fresh node; it knows the founding batch's id."""
        self.folder, self.chain, self.device, self.root = folder, chain, device, root
        self.chance, self.clock = chance, SimClock(chance)
        self.randomness = SimRandomness(chance)
        self.store = MemoryContentStore(vault_id=chain.chain_id, randomness=self.randomness)
        self.view_store = TemporaryViewStore()
        folder.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        did = self.device.did
        self.log = VaultLog(
            Database(self.folder / "log.sqlite"), self.chain, self.device.signer, HybridVerifier(),
            device=did, root=self.root, clock=self.clock,
        )  # fmt: skip
        self.log.reconciler.catch_up()
        self.log.writer.start()
        local = Local(
            unseal=lambda content, sealed: self.store.open_descriptor(ContentId(content), sealed),
            unseal_reason=lambda content, sealed: self.store.open_reason(ContentId(content), sealed),
            has_bytes=lambda content: self.store.has_bytes(ContentId(content)),
            erased=lambda content: self.store.erased(ContentId(content)),
            now_ms=self.clock.wall_ms,
            history=self.log.recorder.history,
        )
        self.views = ProjectionHost(
            self.log.recorder, self.log.index, self.view_store, OWN, local=local, epoch=self.log.index.epoch
        )
        self.log.ledger.on_voided(self.views.reset_all)
        self.eraser = Eraser(
            self.log.recorder, self.store, device=did, clock=self.clock, drop_from_views=self.views.forget,
            unpublished=tuple(self.store.entries),
        )  # fmt: skip
        config = VaultConfig(
            format=HOME_FORMAT, vault_id=self.chain.chain_id, root=self.root, name="sim", member=did, device=did,
            group="did:sim:group", network="loopback", created_ms=0,
        )  # fmt: skip
        self.commands = Commands(
            config, self.log, self.store, self.eraser,  # type: ignore[arg-type]
            clock=self.clock, randomness=self.randomness,
        )  # fmt: skip
        self.desk = PeerDesk(
            self.log, self.store, SimPeers(self.log), vault_id=self.chain.chain_id, device=did,  # type: ignore[arg-type]
            verifier=HybridVerifier(), clock=self.clock, knows_invited=lambda _key: False, invited=_nobody,
        )  # fmt: skip
        self.keeper = BlockKeeper(
            self.log.index, self.chain, lambda _ref: None, self.clock, chance=self.chance.random
        )  # fmt: skip

    def crash(self) -> None:
        """End and begin again with what is durable; sometimes the views are lost too."""
        self.close()
        if self.chance.random() < 0.3:
            self.view_store.close()
            self.view_store = TemporaryViewStore()
        self._open()

    def close(self) -> None:
        """Release everything but the view store."""
        self.log.writer.close()
        self.views.close()
        self.log.close()

    # -- what its owner does ------------------------------------------------------------------------------------

    def publish(self, data: bytes, revises: str | None = None) -> str:
        """Publish; return the id. Raises VaultError."""
        condition, original = None, None
        if revises is not None:
            reading = self.read(bytes.fromhex(revises))
            original = decide_revise(reading.state, bytes.fromhex(revises), by=self.device.did)
            condition = reading.condition
        terms = Terms(nonce=self.randomness.token(16), revises=original)
        content_id = terms.content_id(self.chain.chain_id, self.device.did)
        writer = self.store.writer(content_id, author=self.device.did)
        writer.write(data)
        stored = writer.finish()
        sealed = self.store.seal_descriptor(content_id, Descriptor(name="simulated", length=stored.length))
        event = event_of(stored, terms, sealed)
        self.log.recorder.append([ev.to_dcb(event)], condition)
        return content_id.hex()

    def fetch(self, content_id: bytes, holder: SimNode) -> bool:
        """Take a content from another node, as the fetcher does; False when it gives none. Raises VaultError."""
        wanted = ContentId(content_id)
        reading = self.read(wanted)
        verdict = reading.state.verdict(wanted)
        publication, event = reading.state.publications[wanted], reading.published[wanted]
        if verdict.forgetting == "carried" or self.store.erased(wanted):
            raise ForgottenError("forgotten")
        if self.store.has_bytes(wanted):
            return True
        request = OpenRequest(
            self.device.signer, vault_id=self.chain.chain_id, content_id=wanted, asker=self.device.did,
            holder=holder.device.did, nonce=self.randomness.token(NONCE_BYTES),
        )  # fmt: skip
        wire = request.wire
        ask = p.Fetch(content_id=wanted, nonce=wire.nonce, public=wire.public, signature=wire.signature)
        reply, first = holder.desk.answer(self.device.keys.bus, ask, ())
        assert isinstance(reply, p.Fetched)
        if reply.state != "here":
            return False
        carried = holder.read(wanted).state.verdict(wanted).forgetting == "carried"
        assert not carried, "a node served what it knows to be forgotten"
        key = request.open(reply.sealed_key)
        ContentDecryptor(key, content_context(self.chain.chain_id, publication.author, wanted)).update(event.header)
        _, leaves = holder.desk.answer(self.device.keys.bus, p.Leaves(content_id=wanted, start=0), ())
        length = ciphertext_length(publication.padded_length)
        receiver = self.store.begin_ciphertext(wanted, Root(publication.root), length)
        try:
            receiver.set_leaves(split_leaves(leaves[0]))
            receiver.write_segment(0, first[0])
            receiver.finish()
        finally:
            receiver.close()
        self.store.put_key(wanted, key)
        return True

    def remove(self, did: str) -> None:
        """Put a member out. Raises VaultError."""
        member = self.log.membership().members.get(did)
        if member is not None and not member.removed and did != self.device.did:
            self.log.recorder.append([ev.to_dcb(ev.MemberRemoved(member=did, accepted=()))])

    def read(self, content_id: bytes) -> Reading:
        """What this node's log says about a content."""
        return read_state(self.log.recorder, [content_id])

    # -- what its threads would do ------------------------------------------------------------------------------

    def look(self) -> None:
        """Judge what came, erase what is to be erased, bring the views up to date."""
        self.log.reconciler.catch_up()
        self.eraser.look()
        self.views.catch_up()

    def push_to(self, other: SimNode) -> None:
        """Send the last batches of this device straight to another node."""
        numbers = self.log.index.last_numbers([self.device.did])
        start = max(0, numbers.get(self.device.did, 0) - 3)
        envelopes = self.log.index.envelopes_beyond({self.device.did: start}, [self.device.did], 10)
        other.log.reconciler.accept(envelopes)

    def pull_from(self, other: SimNode) -> None:
        """Take what another node has and this one has not."""
        devices = {k.device for k in other.log.membership().keys.values()}
        have = self.log.index.last_numbers(devices)
        self.log.reconciler.accept(other.log.index.envelopes_beyond(have, devices, 50))

    def hashes(self) -> dict[str, str]:
        """View -> hash."""
        return {name: state.hash for name, state in self.views.status().items()}


def _nobody(_key: bytes, _request: p.Request) -> tuple[p.Reply, tuple[bytes, ...]]:
    raise AssertionError("nobody is invited")
