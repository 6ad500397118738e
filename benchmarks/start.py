"""The start of a real node that holds many small contents, and the first list.

`python benchmarks/start.py [--contents 100000] [--rounds 3]` prints medians: from `Node.open` until requests are
answered, the first `ls` after that, and the processor time that the node has used ten seconds later, when it has
looked through everything. The contents are put there by the node's own parts (store, log, chain), many at a time,
in a process that ends itself. Beside it: the same for an empty vault in the same run. (`node_start.py` measures a
log of which no content is here.)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from walytis_vault import Client, Node
from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.messages import InlinePublish, Published, PublishOptions
from walytis_vault.domain.ids import BatchId
from walytis_vault.founding import SIGNING_SECRET
from walytis_vault.home import Home
from walytis_vault.node import create_vault
from walytis_vault.publishing_together import publish_together

TOGETHER = 500
"""Contents of one batch."""
THREADS = 3
SETTLED_S = 10.0


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fill(path: Path, count: int) -> None:
    """In a process of its own: publish `count` contents of 100 bytes, and end."""
    fs, clock, randomness = OsFileSystem(), SystemClock(), SystemRandomness()
    home = Home(path, fs)
    config = home.config()
    home.lock()
    keys = VaultKeys.open(home.keys, fs, None)
    signer = HybridSigner.from_private_bytes(SecretsFile(home.keys, keys, fs).open_secrets()[SIGNING_SECRET])
    store = DiskContentStore.open(
        home.store, vault_id=config.vault_id, keys=keys, fs=fs, clock=clock, randomness=randomness
    )
    chain = WalytisRuntime.start(path, mode=config.network).open_chain(config.vault_id)
    log = VaultLog(
        Database(home.log_database),
        chain,
        signer,
        HybridVerifier(),
        device=config.device,
        root=BatchId(config.root),
        clock=clock,
    )
    log.start()

    def some(start: int) -> int:
        wanted = [
            InlinePublish(options=PublishOptions(name=f"{n}.txt", labels=("many",)), data=os.urandom(100))
            for n in range(start, min(start + TOGETHER, count))
        ]
        results = publish_together(
            log,
            store,
            wanted,
            vault_id=config.vault_id,
            author=config.member,
            clock=clock,
            randomness=randomness,
        )
        return sum(isinstance(r, Published) for r in results)

    code = 1
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            done = sum(threads.map(some, range(0, count, TOGETHER)))
        log.close()
        store.close()
        code = 0 if done == count else 1
    except Exception:
        traceback.print_exc()
    os._exit(code)  # the embedded node cannot be stopped quickly


def settle(home: Path) -> None:
    """The first start, which builds the views."""
    with Node.open(home), Client(home, timeout=600) as client:
        client.wait_for(client.status().position)


def start(home: Path) -> tuple[float, float, float]:
    """Seconds until ready, seconds of the first list, and processor seconds when all is looked through."""
    began = time.perf_counter()
    with Node.open(home) as node:
        ready = time.perf_counter()
        with Client(home, timeout=60) as client:
            client.query("catalogue")
            listed = time.perf_counter()
            time.sleep(max(0.0, SETTLED_S - (listed - ready)))
            return ready - began, listed - ready, cpu_seconds(node.pid)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contents", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill is not None:
        fill(arguments.fill, arguments.contents)
    print(f"{'contents':>10} {'ready, s':>10} {'first ls, s':>12} {f'CPU {SETTLED_S:.0f} s after, s':>18}")
    for count in (0, arguments.contents):
        with tempfile.TemporaryDirectory(prefix="vault-bench-") as folder:
            home = Path(folder) / "home"
            create_vault(home, network="loopback")
            command = [sys.executable, __file__, "--fill", str(home), "--contents", str(count)]
            subprocess.run(command, check=True, timeout=3600)
            settle(home)
            rounds = [start(home) for _ in range(arguments.rounds)]
            ready, listed, cpu = (statistics.median(r[i] for r in rounds) for i in range(3))
            print(f"{count:>10} {ready:>10.2f} {listed:>12.3f} {cpu:>18.2f}", flush=True)


if __name__ == "__main__":
    main()
