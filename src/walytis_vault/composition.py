"""The composition root: opens every part of a node in order, serves, and closes them in the reverse order.

The only place that knows which adapter stands behind which port.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from walytis_vault import fetching
from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.storage.view_store import TemporaryViewStore
from walytis_vault.adapters.system import OsFileSystem, SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.audit import audit_rows
from walytis_vault.backup.coming_back import ComingBack
from walytis_vault.backup.take import Backup
from walytis_vault.bundle.export import Exporter
from walytis_vault.bus.endpoint import check_listen
from walytis_vault.bus.server import BusServer
from walytis_vault.domain.ids import BatchId, ContentId
from walytis_vault.eraser import Eraser
from walytis_vault.fetching import FetchWish
from walytis_vault.founding import BUS_SECRET, IDENTITY_SECRET, SIGNING_SECRET, check_network
from walytis_vault.health import Health
from walytis_vault.home import Home
from walytis_vault.members import MemberDesk
from walytis_vault.peers.hub import PeerHub, address_book
from walytis_vault.projections.audit import AuditView
from walytis_vault.projections.base import Local
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import load_views
from walytis_vault.repair import Repairer
from walytis_vault.safekeeping import Safekeeping
from walytis_vault.service import NodeService
from walytis_vault.service_manager import READY, STOPPING, notify
from walytis_vault.stopping import Stop, end_at_once
from walytis_vault.view_places import check_place, open_views, remember

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_log = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""Seconds after which a thread that computes lets another one run. With Python's 5 ms a small request, which takes
three turns, waits for 15 ms and more behind one busy client."""


def run_node(
    path: Path,
    *,
    passphrase: str | None,
    network: str | None,
    fetch: FetchWish,
    views: str | None = None,
    listen: str | None = None,
    on_ready: Callable[[str], None],
    stop: Stop,
    metrics: str | None = None,
    on_metrics: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve the vault in `path` until `stop` is set. Afterwards the process must end with `os._exit`.

    Args:
        network: None for the mode that the vault was made with.
        fetch: changes what is fetched unasked, from now on.
        views: where the views are to be from now on, None for where they were.
        listen: where clients connect, instead of a socket in the home: `tcp://127.0.0.1:PORT`.
        on_ready: called with the endpoint when requests are answered.
        metrics: loopback address for the Prometheus endpoint; None for none. Its URL goes to `on_metrics`.
    Raises:
        MisuseError: no vault there, or not to listen there. WrongPassphraseError, LockedError: it does not open.
        AlreadyRunningError: another node runs on it. StorageError, TransportError: it does not start.
    """
    with contextlib.ExitStack() as opened:
        check_listen(listen)
        sys.setswitchinterval(SWITCH_S)
        home = Home(path, OsFileSystem())
        endpoint = _open(home, passphrase, network, fetch, views, listen, opened, metrics, on_metrics)
        on_ready(endpoint)
        notify(READY)
        stop.wait()
        notify(STOPPING)
        _log.info("closing")


def _open(
    home: Home,
    passphrase: str | None,
    network: str | None,
    fetch: FetchWish,
    place: str | None,
    listen: str | None,
    opened: contextlib.ExitStack,
    metrics: str | None,
    on_metrics: Callable[[str], None],
) -> str:
    config = home.config()
    mode = check_network(network) if network is not None else config.network
    home.lock()
    config = fetching.apply(home, config, fetch)
    home.use_private_temp()
    fs, clock, randomness = OsFileSystem(), SystemClock(), SystemRandomness()
    keys = VaultKeys.open(home.keys, fs, passphrase)
    sealed = SecretsFile(home.keys, keys, fs)
    sealed.open_secrets()

    store = DiskContentStore.open(
        home.store, vault_id=config.vault_id, keys=keys, fs=fs, clock=clock, randomness=randomness
    )
    store.on_failure(end_at_once)
    opened.callback(store.close)
    runtime = WalytisRuntime.start(home.path, mode=mode)
    opened.callback(runtime.stop)
    chain = runtime.open_chain(config.vault_id)

    def open_log(by: HybridSigner) -> VaultLog:
        database = Database(home.log_database)
        database.on_unknown = end_at_once
        return VaultLog(
            database,
            chain,
            by,
            HybridVerifier(),
            device=config.device,
            root=BatchId(config.root),
            clock=clock,
            progress=lambda judged: _log.info("catching up: %d blocks judged", judged),
        )

    ComingBack(home, config, runtime, store, sealed, open_log, fs).run()
    secrets = sealed.open_secrets()
    signer = HybridSigner.from_private_bytes(secrets[SIGNING_SECRET])
    log = open_log(signer)
    opened.callback(log.close)
    log.start()

    view_store = open_views(home, config, place)
    opened.callback(view_store.close)
    local = Local(
        unseal=lambda content_id, sealed: store.open_descriptor(ContentId(content_id), sealed),
        # A locked node still shows ballots, so that it can answer them; only their reasons stay sealed.
        unseal_reason=lambda content_id, sealed: (
            None if store.locked else store.open_reason(ContentId(content_id), sealed)
        ),
        has_bytes=lambda content_id: store.is_available(ContentId(content_id)),
        erased=lambda content_id: store.erased(ContentId(content_id)),
        # Nobody queries before the bus is open, and it is opened after the hub.
        held_by=lambda contents: hub.who_holds(contents),  # noqa: PLW0108
        many=store.presence.kept,
        changed=store.presence.changed,
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
    remember(home, config, place)
    log.ledger.on_voided(views.reset_all)
    views.start()

    backup = Backup(home, config, keys, log.index, store, fs=fs, clock=clock)
    threading.Thread(target=backup.tell_all, name="tell-backups", daemon=True).start()

    def after_erasing(content_ids: list[bytes]) -> None:
        try:
            views.forget(content_ids)
        finally:
            backup.note_forgotten(content_ids)

    eraser = Eraser(
        log.recorder,
        store,
        device=config.device,
        clock=clock,
        drop_from_views=after_erasing,
        make_room=store.make_room,
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
        block_file=chain.file_of,
        signer=signer,
        bus_secret=secrets[BUS_SECRET],
        identity_key=secrets[IDENTITY_SECRET],
        fs=fs,
        clock=clock,
        randomness=randomness,
    )
    opened.callback(hub.close)
    hub.start()

    health = Health(
        home,
        log,
        store,
        eraser_error=lambda: eraser.last_error,
        more=lambda: {"views_in": check_place(place or config.views), "bus": bus.details(), **hub.details()},
    )
    safekeeping = Safekeeping(
        log, store, keys, views, held_elsewhere=hub.held_elsewhere, unlocked=hub.fetcher.try_again
    )
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
        members=MemberDesk(config, log, eraser, hub.admission, hub.invitations, clock=clock),
        safekeeping=safekeeping,
        repair=Repairer(store, bring=hub.fetcher.bring, held_elsewhere=hub.held_elsewhere).repair,
        export=Exporter(
            log.index, signer, vault_id=config.vault_id, root=BatchId(config.root), device=config.device, clock=clock
        ).page,
        backup=lambda folder, secret, with_key_file: backup.run(Path(folder), secret, with_key_file=with_key_file),
        health=health,
    )
    bus = BusServer(service, folder=home.bus, keys=secrets[BUS_SECRET], endpoint=listen)
    opened.callback(bus.close)
    endpoint = bus.start()
    if metrics is not None:
        from walytis_vault.metrics import MetricsServer, families

        def collect() -> Iterator[Metric]:
            positions = {"log": log.index.horizon} | {name: views.live(name).position for name in views.folded}
            return families(health.details(), positions, healthy=not health.problems(views.errors()))

        served = MetricsServer(metrics, collect)
        opened.callback(served.close)
        on_metrics(served.url)
    return endpoint
