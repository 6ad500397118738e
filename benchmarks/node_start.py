"""The start of a whole node whose log has many events: until it answers, and until its first page of contents is there.

`PYTHONPATH=tests python benchmarks/node_start.py [--events 100000] [--rounds 3]`. The events are written into the log
of a real vault of one, by a process of its own; their contents are not there. The first start folds all views from
nothing; those that follow find them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from walytis_vault import Client, Node, TimedOutError
from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.claims import content_id_of
from walytis_vault.domain.events import ContentPublished, to_dcb_all
from walytis_vault.domain.ids import BatchId
from walytis_vault.founding import SIGNING_SECRET
from walytis_vault.home import Home
from walytis_vault.node import create_vault

PER_BATCH = 200


def fill(path: Path, count: int) -> None:
    """Write `count` publications into the log of the vault in `path`, and end the process."""
    fs = OsFileSystem()
    home = Home(path, fs)
    config = home.config()
    home.lock()
    home.use_private_temp()
    secrets = SecretsFile(home.keys, VaultKeys.open(home.keys, fs, None), fs).open_secrets()
    runtime = WalytisRuntime.start(home.path, mode=config.network)
    log = VaultLog(
        Database(home.log_database),
        runtime.open_chain(config.vault_id),
        HybridSigner.from_private_bytes(secrets[SIGNING_SECRET]),
        HybridVerifier(),
        device=config.device,
        root=BatchId(config.root),
        clock=SystemClock(),
    )
    log.start()

    def published() -> ContentPublished:
        nonce = os.urandom(16)
        return ContentPublished(
            content_id=content_id_of(config.vault_id, config.member, nonce),
            nonce=nonce,
            root=os.urandom(32),
            padded_length=1024,
            header=os.urandom(56),
            descriptor=os.urandom(200),
        )

    for start in range(0, count, PER_BATCH):
        log.recorder.append(to_dcb_all([published() for _ in range(min(PER_BATCH, count - start))]))
    log.close()
    runtime.stop()
    os._exit(0)


def start(home: Path) -> tuple[float, float, float]:
    """Seconds until the node answers, until a page of contents is there, and until all views have all events."""
    began = time.monotonic()
    with Node.open(home):
        ready = time.monotonic() - began
        with Client(home, timeout=600) as client:
            while True:
                try:
                    client.query("catalogue", limit=50)
                    break
                except TimedOutError:  # it waits for its views for some seconds, and says how far they are
                    continue
            page = time.monotonic() - began
            client.wait_for(client.status().position)
            return ready, page, time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fill", metavar="HOME", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill, arguments.events)
    with tempfile.TemporaryDirectory(prefix="vault-bench-") as name:
        home = Path(name) / "home"
        create_vault(home, network="loopback")
        words = [sys.executable, __file__, "--fill", str(home), "--events", str(arguments.events)]
        subprocess.run(words, check=True, timeout=3000)
        print(f"{arguments.events} events, load {os.getloadavg()[0]:.1f}; seconds until", flush=True)
        print(f"{'':36} {'answers':>8} {'a page':>8} {'all views':>10}")
        first = start(home)
        print(f"{'first start, views from nothing':36} {first[0]:8.2f} {first[1]:8.2f} {first[2]:10.2f}", flush=True)
        found = [
            statistics.median(values) for values in zip(*(start(home) for _ in range(arguments.rounds)), strict=True)
        ]
        what = f"later starts, median of {arguments.rounds}"
        print(f"{what:36} {found[0]:8.2f} {found[1]:8.2f} {found[2]:10.2f}")


if __name__ == "__main__":
    main()
