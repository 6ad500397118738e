"""The log on a real Walytis chain: events a second, append latency beside bare blocks, catch-up, start.

Run by hand (`make bench`): python benchmarks/log.py [--rounds 3]. Every ratio compares within the same run, and
every figure is the median of its rounds. The process ends itself with os._exit, since the embedded node cannot
be stopped quickly.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.system import SystemClock
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog, found_vault
from walytis_vault.domain.events import ContentRetracted, DeviceKeys, KeyAnnounced, VaultFounded, to_dcb
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.ports import Chain

SECONDS_PER_ROUND = 4.0


def event(number: int) -> ContentRetracted:
    """A small event."""
    return ContentRetracted(content_id=number.to_bytes(16, "big"))


def appenders(log: VaultLog, count: int) -> float:
    """Events a second with `count` threads that append one event after the other."""
    until = time.monotonic() + SECONDS_PER_ROUND
    done = [0] * count

    def work(mine: int) -> None:
        while time.monotonic() < until:
            log.recorder.append([to_dcb(event(done[mine]))])
            done[mine] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - start)


def latency(act: Callable[[], object], times: int = 60) -> float:
    """Median milliseconds of one call."""
    taken = []
    for _ in range(times):
        start = time.monotonic()
        act()
        taken.append(time.monotonic() - start)
    return statistics.median(taken) * 1e3


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    home = Path(tempfile.mkdtemp(prefix="vault-bench-"))
    runtime = WalytisRuntime.start(home)
    chain, bare = runtime.create_chain("log"), runtime.create_chain("bare")
    signer = HybridSigner.generate()
    keys = DeviceKeys(
        member="did:bench:m",
        device="did:bench:d",
        ed25519=signer.ed25519_public,
        ml_dsa_65=signer.ml_dsa_65_public,
        bus=bytes(32),
        peer_id=runtime.peer_id,
    )
    root = found_vault(
        chain, signer, VaultFounded(founder=keys.member, group="did:bench:g"), KeyAnnounced(keys=keys), SystemClock()
    )
    log = open_log(home / "log.sqlite", chain, signer, root)
    log.start()
    print(f"{'what':58} {'median':>12}")
    for count in (1, 8, 64):
        rate = statistics.median(appenders(log, count) for _ in range(rounds))
        print(f"{f'events/s, {count} appenders':58} {rate:12.0f}", flush=True)
    pairs = []
    for _ in range(rounds):
        block = latency(lambda: bare.append(b"x" * 3600))
        pairs.append((latency(lambda: log.recorder.append([to_dcb(event(1))])), block))
    append, block = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    print(f"{'one append, ms':58} {append:12.2f}")
    print(f"{'one bare block of the same size, ms':58} {block:12.2f}")
    print(f"{'append / bare block':58} {statistics.median(a / b for a, b in pairs):12.2f}", flush=True)
    events, batches = log.index.horizon, sum(log.index.verdict_counts().values())
    log.close()
    starts = [reopen(home / "log.sqlite", chain, signer, root)[0] for _ in range(rounds)]
    print(f"{f'start of the log with {events} events, nothing missed, s':58} {statistics.median(starts):12.3f}")
    catches = [reopen(home / f"fresh{n}.sqlite", chain, signer, root) for n in range(rounds)]
    rate = statistics.median(batches / took for took, _ in catches)
    print(f"{f'catch-up from nothing, blocks/s ({batches} blocks)':58} {rate:12.0f}")
    rate = statistics.median(seen / took for took, seen in catches)
    print(f"{'catch-up from nothing, events/s':58} {rate:12.0f}", flush=True)
    runtime.stop()
    sys.stdout.flush()
    os._exit(0)


def open_log(path: Path, chain: Chain, signer: HybridSigner, root: BatchId) -> VaultLog:
    """A log on a chain."""
    return VaultLog(
        Database(path), chain, signer, HybridVerifier(), device="did:bench:d", root=root, clock=SystemClock()
    )


def reopen(path: Path, chain: Chain, signer: HybridSigner, root: BatchId) -> tuple[float, int]:
    """Seconds until a log on this index has caught up, and how many events it then has."""
    start = time.monotonic()
    log = open_log(path, chain, signer, root)
    log.start()
    took, seen = time.monotonic() - start, log.index.horizon
    log.close()
    return took, seen


if __name__ == "__main__":
    main()
