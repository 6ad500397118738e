"""All that a node has to do with other nodes, put together: door, links, fetching, invitations."""

from __future__ import annotations

import contextlib
from typing import Any

from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.exchange.tunnels import PeerTunnels
from walytis_vault.adapters.identity import IdentityKeeper
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
from walytis_vault.peers.desk import PeerDesk
from walytis_vault.peers.door import PeerDoor
from walytis_vault.peers.fetcher import Fetcher
from walytis_vault.peers.invitations import Invitations
from walytis_vault.peers.network import PeerNetwork


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
        signer: Signer,
        bus_secret: bytes,
        identity_key: bytes,
        fs: FileSystem,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        """Put the parts together; nothing runs before `start`. Raises StorageError, TransportError."""
        keys = bus_keys(bus_secret)
        self._tunnels = PeerTunnels(runtime.tunnels(), config.vault_id)
        self.network = PeerNetwork(runtime, self._tunnels, log, book, device=config.device, keys=keys)
        folder = home.prepare_peers()
        for left in folder.glob("pack-*"):
            with contextlib.suppress(OSError):
                left.unlink()
        invitations = Invitations(folder / "invitations", fs, clock)
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
        desk = PeerDesk(
            log,
            store,
            self.network,
            vault_id=config.vault_id,
            device=config.device,
            verifier=HybridVerifier(),
            clock=clock,
            knows_invited=invitations.knows,
            invited=self.admission.answer,
        )
        self._door = PeerDoor(bus_secret, admits=desk.admits, answer=desk.answer)
        self.fetcher = Fetcher(
            log,
            store,
            self.network,
            signer,
            vault_id=config.vault_id,
            device=config.device,
            clock=clock,
            policy=config.fetch,
        )

    def start(self) -> None:
        """Open the door, dial the others, fetch what is wanted. Raises TransportError."""
        self._door.start()
        self._tunnels.expose(self._door.port)
        self.network.start()
        self.fetcher.start()

    def close(self) -> None:
        """Stop everything. Bounded."""
        self.fetcher.close()
        self.network.close()
        self._door.close()
        with contextlib.suppress(VaultError):
            self.admission.close()

    def fetch(self, content_id: ContentId, timeout: float) -> None:
        """See `Fetcher.fetch`."""
        self.fetcher.fetch(content_id, timeout=timeout)

    def invite(self, expires_s: float) -> str:
        """See `Admission.invite`."""
        return self.admission.invite(expires_s)

    def details(self) -> dict[str, Any]:
        """For `status`."""
        return {"fetching": self.fetcher.wanted}
