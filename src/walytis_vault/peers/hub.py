"""All that a node has to do with other nodes, put together: door, links, fetching, invitations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.exchange.tunnels import BULK, PeerTunnels
from walytis_vault.adapters.identity import IdentityKeeper
from walytis_vault.adapters.storage.ciphertext_writer import CiphertextWriter
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.security import bus_keys
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.ports import Clock, FileSystem, Randomness, Signer
from walytis_vault.home import Home, VaultConfig
from walytis_vault.peers.addresses import AddressBook
from walytis_vault.peers.admission import Admission
from walytis_vault.peers.blocks import BlockFile, MemberBlocks
from walytis_vault.peers.bulk_door import BulkDoor
from walytis_vault.peers.desk import PeerDesk
from walytis_vault.peers.door import PeerDoor
from walytis_vault.peers.fetcher import Fetcher, FetchRule
from walytis_vault.peers.holders import held_elsewhere, who_holds
from walytis_vault.peers.invitations import Invitations
from walytis_vault.peers.network import PeerNetwork
from walytis_vault.peers.protocol import HOLDS_AT_ONCE
from walytis_vault.peers.transfer import Transfers

LOOK_S: Final = 1.0
"""How long a query waits for the others to say what they hold."""


def address_book(home: Home, fs: FileSystem) -> AddressBook:
    """Where other nodes were last seen."""
    return AddressBook(home.prepare_peers() / "addresses.json", fs)


class PeerHub:
    """For the composition root: made when the log runs, closed before it."""

    def __init__(
        self,
        home: Home,
        config: VaultConfig,
        runtime: WalytisRuntime,
        log: VaultLog,
        store: DiskContentStore,
        book: AddressBook,
        *,
        block_file: BlockFile,
        signer: Signer,
        bus_secret: bytes,
        identity_key: bytes,
        fs: FileSystem,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        """Put the parts together; nothing runs before `start`. Raises StorageError, TransportError."""
        self._runtime = runtime
        keys = bus_keys(bus_secret)
        self._tunnels = PeerTunnels(runtime.tunnels(), config.vault_id)
        self.network = PeerNetwork(runtime, self._tunnels, log, book, device=config.device, keys=keys)
        folder = home.prepare_peers()
        for left in folder.glob("pack-*"):
            with contextlib.suppress(OSError):
                left.unlink()
        invitations = self.invitations = Invitations(folder / "invitations", fs, clock)
        self.admission = Admission(
            config,
            log,
            invitations,
            IdentityKeeper.open(home.identity, identity_key),
            book,
            folder=folder,
            peer_id=runtime.peer_id,
            addresses=self.network.addresses,
            keys=keys,
            randomness=randomness,
        )
        desk = self._desk = PeerDesk(
            log,
            store,
            self.network,
            vault_id=config.vault_id,
            device=config.device,
            verifier=HybridVerifier(),
            clock=clock,
            knows_invited=invitations.knows,
            invited=self.admission.answer,
            block_file=block_file,
        )
        self._door = PeerDoor(bus_secret, admits=desk.admits, answer=desk.answer)
        self._bulk_door = BulkDoor(desk.segment)
        desk.use_bulk(self._bulk_door.offer)
        transfers = self._transfers = Transfers(
            log, store, self.network, signer, vault_id=config.vault_id, device=config.device, clock=clock
        )
        rule = FetchRule(mode=config.fetch, limit=config.fetch_limit, space=config.fetch_space)
        self.fetcher = Fetcher(log, store, self.network, transfers, rule)

    def start(self) -> None:
        """Open the door, dial the others, fetch what is wanted. Raises TransportError."""
        self._door.start()
        self._tunnels.expose(self._door.port)
        self._bulk_door.start()
        self._tunnels.expose(self._bulk_door.port, BULK)
        self.network.start()
        self._runtime.ask_first(MemberBlocks(self.network.links))
        self.fetcher.start()

    def close(self) -> None:
        """Stop everything. Bounded."""
        self.fetcher.close()
        self.network.close()
        self._bulk_door.close()
        self._door.close()
        with contextlib.suppress(VaultError):
            self.admission.close()

    def fetch(
        self, content_id: ContentId, timeout: float, begun: bool = False, given_up: Callable[[], bool] = lambda: False
    ) -> CiphertextWriter | None:
        """See `Fetcher.open`."""
        return self.fetcher.open(content_id, timeout=timeout, begun=begun, given_up=given_up)

    def held_elsewhere(self, contents: Sequence[ContentId]) -> set[ContentId]:
        """Those of some contents that a connected node of another device has whole."""
        return held_elsewhere(self.network.links(), contents)

    def who_holds(self, contents: Sequence[bytes]) -> dict[bytes, tuple[str, ...]]:
        """See `Local.held_by`."""
        asked = [ContentId(i) for i in contents[:HOLDS_AT_ONCE]]
        answers = who_holds(self.network.links(), asked, timeout=LOOK_S)
        return {content_id: answers.get(content_id, ()) for content_id in asked}

    def details(self) -> dict[str, Any]:
        """For `status`."""
        moved = {"sent": self._desk.sent, "received": self._transfers.received}
        return {
            "fetching": self.fetcher.wanted,
            "fetch": self.fetcher.told(),
            "segments": moved,
            "blocks": self._runtime.blocks_fetched(),
        }
