"""How long a newcomer needs: from `join CODE` until its views are equal to the inviter's, on two real nodes.

`python benchmarks/join.py [--events 10000] [--programs 8] [--rounds 3]`; the vault is filled once, by as many
programs as asked that publish 100 bytes at a time, and each round another newcomer joins. The steps are timed as
`join` tells of them; the identity library's own join runs beside the fetching and verifying of the log, so the step
that began last stands for both. Goal: 20 s with 10,000 events.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

from walytis_vault import Client, Node
from walytis_vault.node import join_vault

VIEWS_S = 600.0


def fill(home: Path, events: int, programs: int) -> None:
    """Publish so many small contents, from several connections at once."""

    def work(count: int) -> None:
        with Client(home, timeout=120.0) as client:
            for number in range(count):
                client.publish(number.to_bytes(100, "big"))

    counts = [events // programs + (n < events % programs) for n in range(programs)]
    threads = [threading.Thread(target=work, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def views(client: Client) -> dict[str, str]:
    """View -> hash."""
    return {name: view.hash for name, view in client.status().views.items()}


def measure(folder: Path, inviter: Client) -> dict[str, float]:
    """One newcomer: seconds for each step, and in all."""
    steps: list[tuple[str, float]] = []
    code = inviter.invite(expires=600)
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    join_vault(folder, code, on_progress=lambda step: steps.append((step.partition(":")[0], time.monotonic())))
    steps.append(("starting to serve", time.monotonic()))
    after_join = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after_join.ru_utime + after_join.ru_stime - before.ru_utime - before.ru_stime
    with Node.open(folder), Client(folder) as client:
        steps.append(("views", time.monotonic()))
        pause = threading.Event()
        while views(client) != views(inviter):
            if time.monotonic() - begun > VIEWS_S:
                raise SystemExit(f"the views of the newcomer do not become equal: {steps} {client.status()}")
            pause.wait(0.05)
    ended = time.monotonic()
    spent: dict[str, float] = {}
    for (name, at), (_, after) in zip(steps, [*steps[1:], ("", ended)], strict=True):
        spent[name] = spent.get(name, 0.0) + after - at
    return {**spent, "in all": ended - begun, "CPU time of the join": busy}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--programs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wv-") as temporary:
        folder = Path(temporary)
        with Node.create(folder / "a"), Client(folder / "a", timeout=120.0) as inviter:
            begun = time.monotonic()
            fill(folder / "a", arguments.events, arguments.programs)
            state = inviter.status()
            print(f"{state.position} events, {state.blocks.get('accepted')} blocks, filled in", end=" ")
            print(f"{time.monotonic() - begun:.0f} s; load {os.getloadavg()[0]:.1f}", flush=True)
            rounds = []
            for number in range(arguments.rounds):
                rounds.append(measure(folder / f"b{number}", inviter))
                print(f"round {number + 1}: {rounds[-1]['in all']:.1f} s; load {os.getloadavg()[0]:.1f}", flush=True)
        for name in rounds[0]:
            print(f"{name:32} {statistics.median(r.get(name, 0.0) for r in rounds):6.1f} s")


if __name__ == "__main__":
    main()
