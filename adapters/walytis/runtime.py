"""The embedded Walytis node: kubo as a shared library and walytis_beta on top, in this process.

One for each process, because the libraries keep process-wide state; it cannot be stopped quickly either, so
`stop` flushes what must be flushed and the process then ends itself with `os._exit`. No upstream error leaves.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar, Protocol

from walytis_vault.adapters.walytis import gossip, kubo_repo, quiet, recovery, signals, upstream
from walytis_vault.adapters.walytis.block_store import BlockStore
from walytis_vault.adapters.walytis.chain import WalytisChain
from walytis_vault.adapters.walytis.fast_paths import FastPaths
from walytis_vault.adapters.walytis.fetch import Fetcher, Source
from walytis_vault.adapters.walytis.files import make_private_folder
from walytis_vault.domain.errors import MisuseError, TransportError, UnknownIdError

MAX_NAME: int = 200


class Tunnels(Protocol):
    """Streams through libp2p to local TCP ports (upstream's `ipfs.tunnels`). Authenticate above them."""

    def open_listener(self, name: str, target_addr: int | str) -> None:
        """Forward what peers send to `name` to a local TCP port."""
        ...

    def open_sender(self, name: str, listen_addr: int | str, target_peer_id: str) -> None:
        """Forward a local TCP port to `name` on a peer."""
        ...

    def close_sender(self, name: str, port: int, peer_id: str) -> int:
        """Stop forwarding; how many were closed."""
        ...

    def close_listener(self, name: str, port: int) -> int:
        """Stop listening; how many were closed."""
        ...


class WalytisRuntime:
    """The node. Make it with `start`; all methods may be called from any thread."""

    _started: ClassVar[bool] = False
    _start_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, home: Path, mode: str, peer_id: str, fetcher: Fetcher, fast_paths: FastPaths | None) -> None:
        """For `start` only."""
        self.home = home
        self.mode = mode
        self.peer_id = peer_id
        self._fast_paths = fast_paths
        self._fetcher = fetcher
        self._chains: dict[str, WalytisChain] = {}
        self._lock = threading.RLock()

    @classmethod
    def start(
        cls, home: Path, *, mode: str = "loopback", port: int | None = None, peers: tuple[str, ...] = ()
    ) -> WalytisRuntime:
        """Start the node on `home/ipfs` and `home/walytis`, which are made if missing.

        Args:
            home: the vault's home.
            mode: "loopback", "lan" or "public".
            port: TCP port; None keeps the last one. A busy port is replaced by a free one.
            peers: multiaddrs with /p2p/… to stay connected to.
        Raises:
            MisuseError: a node was started in this process before, or an argument is wrong.
            AlreadyRunningError: another process has a node on this home.
            StorageError: the home cannot be written or is damaged beyond repair.
            TransportError: the node does not start.
        """
        with cls._start_lock:
            if cls._started:
                raise MisuseError("this process already started a Walytis node: use a process for each node")
            home = home.absolute()
            folders = {name: home / name for name in ("ipfs", "walytis", "walytis-index", "walytis-log")}
            for folder in folders.values():
                make_private_folder(folder)
            quiet.hush(folders["walytis-log"])
            with quiet.without_kubo_log(folders["walytis-log"]):
                upstream.load_kubo()
            peer_id = kubo_repo.prepare(folders["ipfs"], mode=mode, port=port, peers=peers)
            recovery.recover(home)
            cls._started = True
            upstream.load(folders["ipfs"], folders["walytis"], folders["walytis-log"])
            signals.take_back()
            fetcher = Fetcher(home / "walytis-log")
            return cls(home, mode, peer_id, fetcher, cls._install_fast_paths(home, fetcher))

    @staticmethod
    def _install_fast_paths(home: Path, fetcher: Fetcher) -> FastPaths | None:
        if not upstream.versions_are_proven():
            upstream.logger.warning("Walytis has other versions than those proven: blocks are slow on long chains")
            return None
        store: BlockStore | None = BlockStore(home / "ipfs")
        if store and store.self_test(upstream.node()):
            fetcher.use_store(store)
        else:
            store = None
        fast = FastPaths(home / "walytis-index", store, fetcher)
        fast.install()
        fast.on_write = recovery.Syncer(home).written
        return fast

    @property
    def fast_paths_active(self) -> bool:
        """Whether upstream's slow paths are replaced."""
        return self._fast_paths is not None

    @property
    def addresses(self) -> list[str]:
        """Multiaddrs with /p2p/… under which peers reach this node; on loopback those of 127.0.0.1."""
        with upstream.our_errors("ask for the node's addresses"):
            found: list[str] = upstream.node().get_addrs()
            return [a if "/p2p/" in a else f"{a}/p2p/{self.peer_id}" for a in found]

    def create_chain(self, name: str) -> WalytisChain:
        """Create a chain. Its `name` is known on this node only.

        Raises:
            MisuseError: the name is empty, too long or taken.
            TransportError: it could not be created.
        """
        if not name or len(name) > MAX_NAME:
            raise MisuseError(f"a chain's name has 1-{MAX_NAME} characters")
        with self._lock, upstream.our_errors("create a chain"):
            if name in upstream.api().list_blockchain_names():
                raise MisuseError(f"this node already has a chain named {name!r}")
            return self._chain(upstream.api().create_blockchain(name))

    def open_chain(self, chain_id: str) -> WalytisChain:
        """Open a chain that this node has.

        Raises:
            UnknownIdError: it has none with this id.
            StorageError: its files are damaged beyond repair.
        """
        with self._lock, upstream.our_errors("open a chain"):
            if not upstream.have_chain(chain_id):
                raise UnknownIdError(f"this node has no chain {chain_id[:100]!r}")
            upstream.load_chain(chain_id)
            return self._chain(chain_id)

    def _chain(self, chain_id: str) -> WalytisChain:
        if chain_id not in self._chains:
            gossip.wait_for(chain_id)
            self._chains[chain_id] = WalytisChain(
                chain_id, index_folder=self.home / "walytis-index", fetcher=self._fetcher
            )
            self._chains[chain_id].settle()
        return self._chains[chain_id]

    def connect(self, multiaddr: str) -> None:
        """Connect to a peer now. Raises TransportError when it cannot be reached."""
        with upstream.our_errors("connect to a peer"):
            if not upstream.node().peers.connect(multiaddr):
                raise TransportError(f"no peer answers at {multiaddr[:200]}")

    def peers(self) -> list[str]:
        """Ids of the peers that are connected now."""
        with upstream.our_errors("list peers"):
            return sorted(set(upstream.node().peers.list_ids() or ()))

    def ask_first(self, source: Source) -> None:
        """Ask here for a block before Kubo, from now on. See `Fetcher.ask_first`."""
        self._fetcher.ask_first(source)

    def blocks_fetched(self) -> dict[str, int]:
        """How many blocks came on which way since the start."""
        return {"from_members": self._fetcher.from_members, "from_kubo": self._fetcher.from_kubo}

    def tunnels(self) -> Tunnels:
        """Upstream's tunnels. They raise upstream's errors; the exchange adapter converts them."""
        tunnels: Tunnels = upstream.node().tunnels
        return tunnels

    def stop(self) -> None:
        """Flush within 2 seconds. Afterwards nothing may be used and the process must end with `os._exit`."""
        with self._lock:
            for chain in self._chains.values():
                chain.close()
            if self._fast_paths is not None:
                self._fast_paths.flush()


def running_node() -> Any:
    """The IpfsNode of this process, for the other adapters."""
    return upstream.node()
