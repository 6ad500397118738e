"""The log on a real Walytis chain: events a second, append latency beside bare blocks, catch-up, start.

`python benchmarks/log.py [--rounds 3] [--blocks 0]`; with --blocks the chain is first grown to so many batches of one
event, and the catch-up is over all of them. Every ratio compares within the same run, every figure is the median of
its rounds. A *bare block* is one `create_block` with nothing of ours around it: with upstream's own code, on a chain
of less than 100 blocks where that is at its best, and with our fast paths. Each node runs in a process that ends
itself with os._exit, since the embedded node cannot be stopped quickly.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
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
from walytis_vault.domain.claims import device_name, prove_possession
from walytis_vault.domain.events import ContentRetracted, DeviceKeys, KeyAnnounced, VaultFounded, to_dcb
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.ports import Chain

SECONDS_PER_ROUND = 4.0
DID = "did:bench:d"


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


def upstream_block(times: int = 60) -> float:
    """Median milliseconds of a block that upstream makes with its own code, in a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--upstream", home, str(times)]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return float(json.loads((Path(home) / "report.json").read_text()))


def upstream_child(home: Path, times: int) -> None:
    """Make the blocks of `upstream_block`, write the median and end the process."""
    from walytis_vault.adapters.walytis import upstream

    upstream.versions_are_proven = lambda: False
    chain = WalytisRuntime.start(home / "node").create_chain("bare")
    (home / "report.json").write_text(json.dumps(latency(lambda: chain.append(b"x" * 3600), times)))
    os._exit(0)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--blocks", type=int, default=5000, help="batches of one event to catch up with, besides the others"
    )
    parser.add_argument("--upstream", nargs=2, metavar=("HOME", "TIMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    if arguments.upstream:
        upstream_child(Path(arguments.upstream[0]), int(arguments.upstream[1]))
    theirs = statistics.median(upstream_block() for _ in range(rounds))
    home = Path(tempfile.mkdtemp(prefix="vault-bench-"))
    runtime = WalytisRuntime.start(home)
    chain, bare = runtime.create_chain("log"), runtime.create_chain("bare")
    signer = HybridSigner.generate()
    me = device_name(DID, signer.key_id)
    keys = DeviceKeys(
        member=me,
        device=me,
        ed25519=signer.ed25519_public,
        ml_dsa_65=signer.ml_dsa_65_public,
        bus=bytes(32),
        peer_id=runtime.peer_id,
    )
    keys = prove_possession(keys, chain.chain_id, signer)
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
    print(f"{'one bare block of the same size, upstream, ms':58} {theirs:12.2f}")
    print(f"{'one bare block of the same size, our fast paths, ms':58} {block:12.2f}")
    print(f"{'append / bare block of upstream':58} {append / theirs:12.2f}")
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{'append / bare block with our fast paths':58} {ratio:12.2f}", flush=True)
    if arguments.blocks:
        grow(log, arguments.blocks)
    events, batches = log.index.horizon, sum(log.index.verdict_counts().values())
    log.close()
    starts = [reopen(home / "log.sqlite", chain, signer, root)[0] for _ in range(rounds)]
    print(f"{f'start of the log with {events} events, nothing missed, s':58} {statistics.median(starts):12.3f}")
    before = resident_mib()
    catches = [reopen(home / f"fresh{n}.sqlite", chain, signer, root) for n in range(rounds)]
    rate = statistics.median(batches / took for took, _ in catches)
    print(f"{f'catch-up from nothing, blocks/s ({batches} blocks)':58} {rate:12.0f}")
    rate = statistics.median(seen / took for took, seen in catches)
    print(f"{'catch-up from nothing, events/s':58} {rate:12.0f}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(f"{'memory that the catch-ups added at most, MiB':58} {max(0.0, grown):12.0f}", flush=True)
    runtime.stop()
    sys.stdout.flush()
    os._exit(0)


def grow(log: VaultLog, blocks: int) -> None:
    """Append `blocks` batches of one event each."""
    for number in range(blocks):
        log.recorder.append([to_dcb(event(number))])
        if number % 1000 == 999:
            print(f"{number + 1} of {blocks} batches", file=sys.stderr, flush=True)


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_log(path: Path, chain: Chain, signer: HybridSigner, root: BatchId) -> VaultLog:
    """A log on a chain."""
    device = device_name(DID, signer.key_id)
    return VaultLog(Database(path), chain, signer, HybridVerifier(), device=device, root=root, clock=SystemClock())


def reopen(path: Path, chain: Chain, signer: HybridSigner, root: BatchId) -> tuple[float, int]:
    """Seconds until a log on this index has caught up, with progress on stderr, and how many events it then has."""
    start = time.monotonic()
    log = open_log(path, chain, signer, root)
    log.start()
    took, seen = time.monotonic() - start, log.index.horizon
    log.close()
    return took, seen


if __name__ == "__main__":
    main()
