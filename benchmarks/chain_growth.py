"""How the rate of block creation depends on the length of the chain: ours, and upstream's in the same run.

`python benchmarks/chain_growth.py [--blocks 10000] [--upstream 600] [--size 4000] [--rounds 3]` prints one line for
each length at which it measured, and how the rate at 10,000 blocks compares with that at 500: medians over the rounds,
each on a fresh chain. Upstream runs with its own code in a process of its own; it falls so steeply that a few hundred
blocks are enough to see it.
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
from typing import Any


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("HOME", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        home, kind = arguments.child
        grow(Path(home), arguments.blocks, arguments.size, kind == "ours")
    for kind, blocks in (("upstream", arguments.upstream), ("ours", arguments.blocks)):
        _print(kind, [_measure(kind, blocks, arguments.size) for _ in range(arguments.rounds)])
    return 0


def _measure(kind: str, blocks: int, size: int) -> dict[str, Any]:
    """One round in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        command = [sys.executable, __file__, "--blocks", str(blocks), "--size", str(size)]
        subprocess.run([*command, "--child", str(home), kind], check=True, timeout=3600)
        report: dict[str, Any] = json.loads((home / "report.json").read_text())
        return report


def _print(kind: str, rounds: list[dict[str, Any]]) -> None:
    length = len(rounds[0]["times"])
    peak = statistics.median(r["peak_mib"] for r in rounds)
    print(f"\n{kind}: {length} blocks, medians of {len(rounds)} rounds, peak memory {peak:.0f} MiB")
    print(f"{'length':>8} {'blocks/s':>9} {'p50 ms':>8} {'p95 ms':>8}")
    for upto in (100, 200, 300, 400, 500, 600, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000):
        if upto > length:
            break
        windows = [_window(r["times"], upto) for r in rounds]
        p50 = statistics.median(statistics.median(window) for window in windows)
        p95 = statistics.median(statistics.quantiles(window, n=20)[18] for window in windows)
        rate = statistics.median(_rate(r["times"], upto) for r in rounds)
        print(f"{upto:>8} {rate:>9.1f} {p50:>8.2f} {p95:>8.2f}")
    if length >= 10_000:
        ratio = statistics.median(_rate(r["times"], 10_000) / _rate(r["times"], 500) for r in rounds)
        print(f"{'blocks/s at 10,000 against at 500':>36} {ratio:.2f}")


def _window(times: list[float], upto: int) -> list[float]:
    """The times of the last blocks before a length."""
    return times[max(0, upto - max(100, upto // 10)) : upto]


def _rate(times: list[float], upto: int) -> float:
    """Blocks a second around a length."""
    return 1e3 / statistics.fmean(_window(times, upto))


if __name__ == "__main__":
    raise SystemExit(main())
