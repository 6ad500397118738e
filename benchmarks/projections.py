"""Views: folding, rebuilding, querying and starting, against eventsourcing's own runner in the same run.

`PYTHONPATH=src:tests python benchmarks/projections.py [--events 100000] [--rounds 3] [--memory 1000000]` prints
medians: from a log in memory, so that the views are measured and not the log, and from a real one on disk with its
exact causes. Then it folds `--memory` events, made on the fly, and prints how the peak of resident memory grew.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eventsourcing.dcb.api import DCBSequencedEvent
from eventsourcing.dcb.application import DCBApplication
from eventsourcing.dcb.popo import SimpleDCBReadResponse
from eventsourcing.projection import BaseProjectionRunner
from eventsourcing.utils import EnvType

from support.long_story import TIME_MS, Story, padded_of, write_log
from support.memory_log import MemoryLog, logged
from support.view_world import Opened
from walytis_vault.adapters.storage.view_store import SqliteViewStore
from walytis_vault.domain import events as ev
from walytis_vault.domain.forgetting import BY_DEPTH, History
from walytis_vault.projections.base import ERASED, HERE, Local
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.log import EventLog, Horizon
from walytis_vault.projections.plugins import OWN

STORY = Story()


def opened(content_id: bytes, _sealed: bytes) -> Opened:
    """What a descriptor says; costs about what opening one costs."""
    number = content_id[0]
    return Opened(
        f"report {content_id.hex()[:6]}.pdf",
        "text/plain" if number % 2 else "image/png",
        (f"l{number}",),
        padded_of(content_id) * 20 // 21,
    )


class Kept:
    """What is on a node's disk: all, but for every other content whose ballot carried; nothing changes any more."""

    def __init__(self, story: Story, count: int) -> None:
        self._gone = {story.asked(p) for p in range(207, count + 1, 200)}

    def local(self, history: History = BY_DEPTH) -> Local:
        """For a host."""
        return Local(
            unseal=opened,
            many=lambda contents: [ERASED if c in self._gone else HERE for c in contents],
            has_bytes=lambda content: content not in self._gone,
            erased=lambda content: content in self._gone,
            changed=lambda mark: (0, None if mark < 0 else ()),
            history=history,
        )


class Endless(MemoryLog):
    """A log of so many events, made when they are read."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    @property
    def horizon(self) -> int:
        """The last position."""
        return self.length

    def read(self, query: Any = None, *, after: int | None = None, limit: int | None = None) -> Any:
        """See `MemoryLog.read`."""
        last = min(self.length, (after or 0) + (limit or self.length))
        made = (
            DCBSequencedEvent(event=logged(STORY.recorded(p)), position=p) for p in range((after or 0) + 1, last + 1)
        )
        return SimpleDCBReadResponse(made, last)


class App(DCBApplication):
    """eventsourcing's application over the log."""

    name = "log"
    log: MemoryLog

    def __init__(self, env: EnvType | None = None) -> None:
        self.recorder = App.log
        self.mapper = ev.ClosedMapper()

    def close(self) -> None:
        """Nothing to release."""


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def library(folder: Path, log: MemoryLog, count: int) -> float:
    """Events per second of eventsourcing's runner into our catalogue alone: one commit for each event."""
    App.log = MemoryLog()
    App.log.events = log.events[:count]
    store = SqliteViewStore(folder / "library.db")
    live = LiveView(OWN[0], store, Local())
    with store.transaction() as connection:
        live.open(connection, 0)
    started = time.perf_counter()
    with BaseProjectionRunner(
        projection=live.view, application_class=App, tracking_recorder=live.view.view, topics=()
    ) as runner:
        runner.wait(count, timeout=600)
    store.close()
    return count / (time.perf_counter() - started)


def queries(host: ProjectionHost, story: Story = STORY, count: int = 100_000) -> Iterator[tuple[str, float, float]]:
    """(what, first ms, median ms) of 50 rows from the catalogue and others."""
    some, author = story.content(501).hex(), story.members[3]
    # A third of the past, that far back.
    times = {"since": TIME_MS + 200 * count, "until": TIME_MS + 500 * count}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("catalogue", {}),
        ("catalogue", {"author": author}),
        ("catalogue", {"author": author, "sort": "-size"}),
        ("catalogue", {"author": author, "sort": "time"}),
        ("catalogue", {"state": "available"}),
        ("catalogue", {"state": "pending"}),
        ("catalogue", {"state": "pending", "sort": "-size"}),
        ("catalogue", {"state": "forgetting"}),
        ("catalogue", {"state": "forgetting", "sort": "size"}),
        ("catalogue", {"state": "forgotten"}),
        ("catalogue", {"state": "forgotten", "author": author}),
        ("catalogue", {"state": "retracted"}),
        ("catalogue", times),
        ("catalogue", times | {"author": author}),
        ("catalogue", times | {"sort": "-size"}),
        ("catalogue", {"since": TIME_MS + 500 * count}),
        ("catalogue", {"min_size": 900_000}),
        ("catalogue", {"current": False, "sort": "size"}),
        ("catalogue", {"sort": "-size"}),
        ("catalogue", {"content_id": some}),
        ("catalogue", {"label": "l7"}),
        ("catalogue", {"media_type": "image/png"}),
        ("catalogue", {"text": "report"}),
        ("catalogue", {"text": "report abc"}),
        ("catalogue", {"text": "7f"}),
        ("catalogue", {"text": "7f", "author": author}),
        ("timeline", {}),
        ("timeline", times),
        ("timeline", times | {"author": author}),
        ("timeline", {"content_id": some}),
        ("ballots", {"state": "carried"}),
        ("holders", {"content_id": some}),
    ]
    for view, filters in asked:
        took = [timed(lambda v=view, f=filters: host.query(v, limit=50, filters=f)) for _ in range(15)]
        said = {name: "…" if value == author else value for name, value in filters.items()}
        yield f"{view} {said or ''}", took[0] * 1e3, statistics.median(took) * 1e3


def views(what: str, log: EventLog, horizon: Horizon, local: Local, story: Story, count: int, rounds: int) -> None:
    """Fold, rebuild, ask and start; print medians."""
    folds, rebuilds, starts, hashes = [], [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = SqliteViewStore(folder / "views.db")
            host = ProjectionHost(log, horizon, store, OWN, local=local)
            folds.append(timed(host.catch_up))
            hashes.append(timed(host.status))
            rebuilds.append(timed(host.rebuild))
            host.status()
            answers = list(queries(host, story, count))
            host.close()
            store.close()

            def start(path: Path = folder) -> None:
                again = SqliteViewStore(path / "views.db")
                host = ProjectionHost(log, horizon, again, OWN, local=local)
                host.catch_up()
                host.status()
                host.close()
                again.close()

            starts.append(timed(start))
    fold, rebuild = statistics.median(folds), statistics.median(rebuilds)
    print(f"{count} events from {what}, {len(OWN)} views, median of {rounds}, load {os.getloadavg()[0]:.1f}")
    print(f"  first fold of all views        {fold:8.2f} s   {count / fold:10.0f} events/s")
    print(f"  rebuild of all, beside the old {rebuild:8.2f} s   {count / rebuild:10.0f} events/s")
    print(f"  hashes of all, from nothing    {statistics.median(hashes):8.2f} s")
    print(f"  start with views up to date    {statistics.median(starts):8.2f} s")
    for asked, first, median in answers:
        print(f"  50 rows: {asked:70} first {first:8.2f} ms   p50 {median:7.2f} ms", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=1_000_000, help="0 leaves this measurement out")
    parser.add_argument("--memory-alone", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_alone:
        memory(arguments.memory_alone)
        return
    count, rounds = arguments.events, arguments.rounds
    log = MemoryLog()
    log.add(STORY.recorded(p) for p in range(1, count + 1))
    views("memory", log, log, Kept(STORY, count).local(), STORY, count, rounds)
    with tempfile.TemporaryDirectory() as name:
        some = min(5000, count)
        print(f"  eventsourcing's runner, catalogue alone:      {library(Path(name), log, some):10.0f} events/s")
    with tempfile.TemporaryDirectory() as name:
        disk, story = write_log(Path(name), count)
        local = Kept(story, count).local(disk.recorder.history)
        views("a log on disk, with its exact causes", disk.recorder, disk.index, local, story, count, rounds)
        disk.close()
    if arguments.memory:
        # In a process of its own: the peak of this one is not to be told from it.
        words = [sys.executable, __file__, "--memory-alone", str(arguments.memory)]
        subprocess.run(words, check=True, timeout=3000)


def memory(count: int) -> None:
    """Fold `count` events that are made on the fly and print the peak of resident memory on the way."""
    log = Endless(0)
    with tempfile.TemporaryDirectory() as name:
        store = SqliteViewStore(Path(name) / "views.db")
        host = ProjectionHost(log, log, store, OWN)
        for part in range(1, 11):
            log.length = count * part // 10
            seconds = timed(host.catch_up)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"  {log.length:9} events: peak {peak:7.0f} MiB, {count / 10 / seconds:8.0f} events/s", flush=True)
        host.close()
        store.close()


if __name__ == "__main__":
    main()
