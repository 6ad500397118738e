"""The audit, an export and its verification on a real Walytis chain of many batches.

Run by hand (`make bench`): python benchmarks/audit.py [--batches 10000]. Each batch has one event, which is the dearest
case: batches that several programs fill at once have more. Figures are wall time and, for busy machines, processor
time. The process ends itself with os._exit, since the embedded node cannot be stopped quickly.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.system import SystemClock
from walytis_vault.adapters.walytis.log_audit import audit_log
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.second_log import SecondLog
from walytis_vault.adapters.walytis.vault_log import VaultLog, found_vault
from walytis_vault.bundle.export import Exporter
from walytis_vault.bundle.verify import verify_bundle
from walytis_vault.domain.claims import content_id_of, device_name, prove_possession
from walytis_vault.domain.events import ContentPublished, DeviceKeys, KeyAnnounced, VaultFounded, to_dcb
from walytis_vault.ledger_account import read_account

ROUNDS = 3


def published(vault_id: str, author: str, number: int) -> ContentPublished:
    """A content, as far as the log goes."""
    nonce = number.to_bytes(16, "big")
    return ContentPublished(
        content_id=content_id_of(vault_id, author, nonce),
        nonce=nonce,
        root=os.urandom(32),
        padded_length=1024,
        header=os.urandom(56),
        descriptor=os.urandom(200),
    )


def measure(what: str, act: Callable[[], object]) -> None:
    """Print the medians of some rounds."""
    walls, cpus = [], []
    for _ in range(ROUNDS):
        wall, cpu = time.monotonic(), time.process_time()
        act()
        walls.append(time.monotonic() - wall)
        cpus.append(time.process_time() - cpu)
    print(f"{what:46} {statistics.median(walls):8.2f} {statistics.median(cpus):10.2f}", flush=True)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    count = parser.parse_args().batches
    home = Path(tempfile.mkdtemp(prefix="vault-bench-"))
    runtime, signer, clock = WalytisRuntime.start(home), HybridSigner.generate(), SystemClock()
    chain = runtime.create_chain("log")
    me = device_name("did:bench:d", signer.key_id)
    keys = DeviceKeys(
        member=me,
        device=me,
        ed25519=signer.ed25519_public,
        ml_dsa_65=signer.ml_dsa_65_public,
        bus=bytes(32),
        peer_id=runtime.peer_id,
    )
    keys = prove_possession(keys, chain.chain_id, signer)
    founded = VaultFounded(founder=keys.member, group="did:bench:g")
    root = found_vault(chain, signer, founded, KeyAnnounced(keys=keys), clock)
    log = VaultLog(
        Database(home / "log.sqlite"), chain, signer, HybridVerifier(), device=keys.device, root=root, clock=clock
    )
    log.start()
    for number in range(count):
        log.recorder.append([to_dcb(published(chain.chain_id, me, number))])

    def audit() -> None:
        with SecondLog(vault_id=chain.chain_id, root=root, verifier=HybridVerifier()) as again:
            report = audit_log(log, again)
            assert report.findings == ()
            assert len(read_account(again).contents) == count

    exporter = Exporter(log.index, signer, vault_id=chain.chain_id, root=root, device=keys.device, clock=clock)
    bundle = home / "bundle"

    def export() -> None:
        cursor: str | None = None
        with bundle.open("wb") as file:
            while True:
                page = exporter.page(cursor)
                file.write(page.lines)
                cursor = page.cursor
                if cursor is None:
                    return

    print(f"load {os.getloadavg()[0]:.1f}; {count} batches of one event, medians of {ROUNDS}")
    print(f"{'what':46} {'wall, s':>8} {'processor, s':>10}")
    measure("audit: every block again, and the account", audit)
    measure("export", export)
    measure("verify", lambda: verify_bundle(bundle))
    print(f"{'size of the bundle, MB':46} {bundle.stat().st_size / 1e6:8.1f}")
    log.close()
    runtime.stop()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
