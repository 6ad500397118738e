"""The composition root: opens every part of a node in order, serves, and closes them in the reverse order.

The only place that knows which adapter stands behind which port.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.storage.view_store import SqliteViewStore, TemporaryViewStore
from walytis_vault.adapters.system import OsFileSystem, SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.audit import audit_rows
from walytis_vault.bus.server import BusServer
from walytis_vault.domain.ids import BatchId, ContentId
from walytis_vault.eraser import Eraser
from walytis_vault.founding import BUS_SECRET, IDENTITY_SECRET, SIGNING_SECRET, check_network
from walytis_vault.home import Home
from walytis_vault.peers.hub import PeerHub, address_book
from walytis_vault.projections.audit import AuditView
from walytis_vault.projections.base import Local
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import load_views
from walytis_vault.service import NodeService

STOP_LOOK_S: Final = 0.5

_log = logging.getLogger(__name__)


def run_node(
    path: Path,
    *,
    passphrase: str | None,
    network: str | None,
    on_ready: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Serve the vault in `path` until `stop` is set. Afterwards the process must end with `os._exit`.

    Args:
        network: None for the mode that the vault was made with.
        on_ready: called with the endpoint when requests are answered.
    Raises:
        MisuseError: no vault there. WrongPassphraseError, LockedError: it does not open.
        AlreadyRunningError: another node runs on it. StorageError, TransportError: it does not start.
    """
    with contextlib.ExitStack() as opened:
        endpoint = _open(Home(path, OsFileSystem()), passphrase, network, opened)
        on_ready(endpoint)
        # A signal that the kernel gives to a thread of a library is handled when this one wakes, and not before.
        while not stop.wait(STOP_LOOK_S):
            pass
        _log.info("closing")


def _open(home: Home, passphrase: str | None, network: str | None, opened: contextlib.ExitStack) -> str:
    config = home.config()
    mode = check_network(network) if network is not None else config.network
    home.lock()
    home.use_private_temp()
    fs, clock, randomness = OsFileSystem(), SystemClock(), SystemRandomness()
    keys = VaultKeys.open(home.keys, fs, passphrase)
    secrets = SecretsFile(home.keys, keys, fs).open_secrets()
    signer = HybridSigner.from_private_bytes(secrets[SIGNING_SECRET])

    store = DiskContentStore.open(
        home.store, vault_id=config.vault_id, keys=keys, fs=fs, clock=clock, randomness=randomness
    )
    opened.callback(store.close)
    runtime = WalytisRuntime.start(home.path, mode=mode)
    opened.callback(runtime.stop)
    log = VaultLog(
        Database(home.log_database),
        runtime.open_chain(config.vault_id),
        signer,
        HybridVerifier(),
        device=config.device,
        root=BatchId(config.root),
        clock=clock,
        progress=lambda judged: _log.info("catching up: %d blocks judged", judged),
    )
    opened.callback(log.close)
    log.start()

    view_store = SqliteViewStore(home.view_database)
    opened.callback(view_store.close)
    local = Local(
        unseal=lambda content_id, sealed: store.open_descriptor(ContentId(content_id), sealed),
        unseal_reason=lambda content_id, sealed: store.open_reason(ContentId(content_id), sealed),
        has_bytes=lambda content_id: store.has_bytes(ContentId(content_id)),
        erased=lambda content_id: store.erased(ContentId(content_id)),
        now_ms=clock.wall_ms,
        history=log.recorder.history,
    )
    kinds, left_out = load_views()
    for problem in left_out:
        _log.warning("%s", problem)
    views = ProjectionHost(
        log.recorder,
        log.index,
        view_store,
        kinds,
        local=local,
        sources=[AuditView(lambda after, limit, filters: audit_rows(log.index, after, limit, filters))],
        epoch=log.index.epoch,
        temporary=TemporaryViewStore,
    )
    opened.callback(views.close)
    log.ledger.on_voided(views.reset_all)
    views.start()

    eraser = Eraser(
        log.recorder,
        store,
        device=config.device,
        clock=clock,
        drop_from_views=views.forget,
        unpublished=store.content_ids(),
    )
    opened.callback(eraser.close)
    eraser.start()

    hub = PeerHub(
        home,
        config,
        runtime,
        log,
        store,
        address_book(home, fs),
        signer=signer,
        bus_secret=secrets[BUS_SECRET],
        identity_key=secrets[IDENTITY_SECRET],
        fs=fs,
        clock=clock,
        randomness=randomness,
    )
    opened.callback(hub.close)
    hub.start()

    def details() -> dict[str, Any]:
        return {"store": msgspec.structs.asdict(store.usage()), "bus": bus.details(), **hub.details()}

    service = NodeService(
        config,
        log,
        store,
        views,
        eraser,
        network=mode,
        clock=clock,
        randomness=randomness,
        peers=hub.network.connected,
        fetch=hub.fetch,
        invite=hub.invite,
        details=details,
    )
    bus = BusServer(service, folder=home.bus, keys=secrets[BUS_SECRET])
    opened.callback(bus.close)
    return bus.start()
