"""How the rate of block creation depends on the length of the chain: ours, and upstream's in the same run.

`python benchmarks/chain_growth.py [--blocks 10000] [--upstream 600] [--size 4000]` prints one line for each length
at which it measured: median of the block times around it, as blocks a second. Upstream runs with its own code in
a process of its own; it falls so steeply that a few hundred blocks are enough to see it.
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
import time
from pathlib import Path


def grow(home: Path, blocks: int, size: int, fast: bool) -> None:
    """Create blocks one after the other; write the time of each (ms) as JSON to fd 3, which must be open."""
    from walytis_vault.adapters.walytis import upstream
    from walytis_vault.adapters.walytis.runtime import WalytisRuntime

    if not fast:
        upstream.versions_are_proven = lambda: False
    chain = WalytisRuntime.start(home).create_chain("growth")
    content, times = os.urandom(size), []
    started = time.perf_counter()
    for _ in range(blocks):
        before = time.perf_counter()
        chain.append(content)
        times.append((time.perf_counter() - before) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {"times": times, "seconds": time.perf_counter() - started, "peak_mib": peak}
    (home / "report.json").write_text(json.dumps(report))
    os._exit(0)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--upstream", type=int, default=600, help="blocks to create with upstream's own code")
    parser.add_argument("--size", type=int, default=4000, help="bytes of content")
    parser.add_argument("--child", nargs=2, metavar=("HOME", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        home, kind = arguments.child
        grow(Path(home), arguments.blocks, arguments.size, kind == "ours")
    with tempfile.TemporaryDirectory() as folder:
        for kind, blocks in (("upstream", arguments.upstream), ("ours", arguments.blocks)):
            home = Path(folder) / kind
            home.mkdir()
            command = [sys.executable, __file__, "--blocks", str(blocks), "--size", str(arguments.size)]
            subprocess.run([*command, "--child", str(home), kind], check=True, timeout=3600)
            report = json.loads((home / "report.json").read_text())
            _print(kind, report["times"], report["peak_mib"])
    return 0


def _print(kind: str, times: list[float], peak_mib: float) -> None:
    print(f"\n{kind}: {len(times)} blocks, peak memory {peak_mib:.0f} MiB")
    print(f"{'length':>8} {'blocks/s':>9} {'p50 ms':>8} {'p95 ms':>8}")
    rates = {}
    for length in (100, 200, 300, 400, 500, 600, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000):
        if length > len(times):
            break
        window = times[max(0, length - max(100, length // 10)) : length]
        rates[length] = 1e3 / statistics.fmean(window)
        quantiles = statistics.quantiles(window, n=20)
        print(f"{length:>8} {rates[length]:>9.1f} {statistics.median(window):>8.2f} {quantiles[18]:>8.2f}")
    if 500 in rates and 10_000 in rates:
        print(f"ratio of 10,000 to 500: {rates[10_000] / rates[500]:.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
