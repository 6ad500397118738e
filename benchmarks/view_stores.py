"""Views in PostgreSQL against views in SQLite, in the same run: folding, rebuilding, querying.

`PYTHONPATH=src:tests python benchmarks/view_stores.py [--events 100000] [--rounds 3]` starts a PostgreSQL server of its
own (fsync on) and prints medians: seconds on the clock, and of CPU in our process and in the server's.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from projections import STORY, Kept, queries

from support.memory_log import MemoryLog
from support.postgres_server import PostgresServer, find_programs
from walytis_vault.adapters.storage.postgres_views import PostgresViewStore
from walytis_vault.adapters.storage.view_store import SqliteViewStore
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import OWN
from walytis_vault.projections.store import ViewStore

TICKS = os.sysconf("SC_CLK_TCK")


def server_cpu(server: PostgresServer) -> float:
    """CPU seconds of all processes of the server so far, those that ended included."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if server.pid in (int(stat.parent.name), int(fields[1])):
            total += sum(int(n) for n in fields[11 : 15 if int(stat.parent.name) == server.pid else 13])
    return total / TICKS


def cost(action: Callable[[], object], server: PostgresServer) -> tuple[float, float, float]:
    """(seconds, CPU seconds here, CPU seconds in the server)."""
    there, here, clock = server_cpu(server), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    action()
    now = resource.getrusage(resource.RUSAGE_SELF)
    ours = now.ru_utime + now.ru_stime - here.ru_utime - here.ru_stime
    return time.perf_counter() - clock, ours, server_cpu(server) - there


def measure(store: ViewStore, log: MemoryLog, server: PostgresServer) -> dict[str, tuple[float, ...]]:
    """Fold, hash, rebuild, ask."""
    count = log.horizon
    host = ProjectionHost(log, log, store, OWN, local=Kept(STORY, count).local())
    found: dict[str, tuple[float, ...]] = {
        "first fold of all views": cost(host.catch_up, server),
        "hashes of all": cost(host.status, server),
        "rebuild of all": cost(host.rebuild, server),
    }
    host.status()
    found |= {f"50 rows: {what}": (median / 1e3,) for what, _, median in queries(host, count=count)}
    host.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    programs = find_programs()
    if programs is None:
        print("no PostgreSQL programs here (apt install postgresql): nothing to compare")
        return
    log = MemoryLog()
    log.add(STORY.recorded(p) for p in range(1, arguments.events + 1))
    server = PostgresServer(programs, fsync=True)
    rounds: list[list[dict[str, tuple[float, ...]]]] = []
    try:
        server.start()
        for number in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as name:
                lite, big = SqliteViewStore(Path(name) / "views.db"), PostgresViewStore(server.url(), f"bench_{number}")
                rounds.append([measure(store, log, server) for store in (lite, big)])
                lite.close()
                big.close()
    finally:
        server.remove()
    print(f"{arguments.events} events, median of {arguments.rounds}, load {os.getloadavg()[0]:.1f}")
    for what in rounds[0][0]:
        line = f"  {what:58}"
        for number, name in enumerate(("SQLite", "PostgreSQL")):
            figures = [statistics.median(f) for f in zip(*(r[number][what] for r in rounds), strict=True)]
            if len(figures) == 1:
                line += f"  {name} {figures[0] * 1e3:8.2f} ms"
            else:
                line += f"  {name} {figures[0]:7.2f} s (CPU {figures[1]:.2f} + {figures[2]:.2f})"
        print(line)


if __name__ == "__main__":
    main()
