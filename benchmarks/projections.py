"""Views: folding, rebuilding, querying and starting, against eventsourcing's own runner in the same run.

`PYTHONPATH=src:tests python benchmarks/projections.py [--events 100000] [--rounds 3] [--memory 1000000]` prints
medians. The log is in memory, so that the views are measured and not the log; `--memory N` folds N events and
prints how the peak of resident memory grew (the log is then made on the fly).
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import statistics
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

from support.memory_log import MemoryLog, logged
from support.view_world import Opened
from walytis_vault.adapters.storage.view_store import SqliteViewStore
from walytis_vault.domain import events as ev
from walytis_vault.projections.base import Local
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.live import LiveView
from walytis_vault.projections.plugins import OWN

AUTHORS = [f"did:walytis:{hashlib.sha256(b'%d' % i).hexdigest()}" for i in range(5)]


def event(position: int) -> ev.Recorded:
    """Event `position` of the history: mostly publications; 2 % revisions, 2 % retractions, 1 % ballots of two."""
    rng = random.Random(position)
    author = AUTHORS[position % 2 if position % 100 in (7, 8) else position % 5]
    kind = position % 100
    made: ev.Event
    if position == 1:
        made = ev.VaultFounded(founder=AUTHORS[0], group="did:walytis:group")
    elif kind in (3, 53) and position > 200:
        made = ev.ContentRetracted(content_id=content_of(position - 101))
        author = AUTHORS[(position - 101) % 5]
    elif kind == 7 and position > 200:
        target = (content_of(position - 105),)
        made = ev.ForgettingProposed(
            ballot_id=content_of(-position), contents=target, electorate=tuple(sorted(AUTHORS[:2]))
        )
    elif kind == 8 and position > 200:
        made = ev.ForgettingConsented(ballot_id=content_of(-(position - 1)))
    else:
        revises = content_of(position - 105) if kind in (20, 70) and position > 200 else None
        made = ev.ContentPublished(
            content_id=content_of(position),
            root=rng.randbytes(32),
            padded_length=padded_of(content_of(position)),
            header=bytes(56),
            descriptor=rng.randbytes(232),
            revises=revises,
        )
    batch_id = hashlib.sha256(b"batch %d" % position).digest()
    origin = ev.Origin(
        batch_id=batch_id,
        index=0,
        depth=position,
        author=author,
        device=author + "/device",
        number=position,
        time_ms=1_700_000_000_000 + 1000 * position,
    )
    return ev.Recorded(made.tags(), made, origin)


def content_of(position: int) -> bytes:
    """The id of the content that `position` publishes."""
    return hashlib.sha256(b"content %d" % position).digest()[:16]


def padded_of(content_id: bytes) -> int:
    """The padded length of a content: 1 kB to 1 MB."""
    return 1000 + int.from_bytes(content_id[1:5], "big") % 999_000


def opened(content_id: bytes, _sealed: bytes) -> Opened:
    """What a descriptor says; costs about what opening one costs."""
    number = content_id[0]
    return Opened(
        f"report {content_id.hex()[:6]}.pdf",
        "text/plain" if number % 2 else "image/png",
        (f"l{number}",),
        padded_of(content_id) * 20 // 21,
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
        made = (DCBSequencedEvent(event=logged(event(p)), position=p) for p in range((after or 0) + 1, last + 1))
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


def queries(host: ProjectionHost) -> Iterator[tuple[str, float, float]]:
    """(what, first ms, median ms) of 50 rows from the catalogue and others."""
    some = content_of(501).hex()
    asked: list[tuple[str, dict[str, Any]]] = [
        ("catalogue", {}),
        ("catalogue", {"author": AUTHORS[3]}),
        ("catalogue", {"state": "available"}),
        ("catalogue", {"state": "forgetting"}),
        ("catalogue", {"state": "retracted"}),
        ("catalogue", {"since": 1_700_000_000_000 + 50_000_000}),
        ("catalogue", {"min_size": 900_000}),
        ("catalogue", {"sort": "-size"}),
        ("catalogue", {"content_id": some}),
        ("catalogue", {"label": "l7"}),
        ("catalogue", {"media_type": "image/png"}),
        ("catalogue", {"text": "report"}),
        ("catalogue", {"text": "report abc"}),
        ("catalogue", {"text": "7f"}),
        ("catalogue", {"text": "7f", "author": AUTHORS[3]}),
        ("timeline", {}),
        ("timeline", {"content_id": some}),
        ("ballots", {"state": "carried"}),
        ("holders", {"content_id": some}),
    ]
    for view, filters in asked:
        times = [timed(lambda v=view, f=filters: host.query(v, limit=50, filters=f)) for _ in range(15)]
        yield f"{view} {filters or ''}", times[0] * 1e3, statistics.median(times) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory)
        return
    log = MemoryLog()
    log.add(event(p) for p in range(1, arguments.events + 1))
    local = Local(unseal=opened, has_bytes=lambda _content: True)
    folds, rebuilds, starts, hashes = [], [], [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = SqliteViewStore(folder / "views.db")
            host = ProjectionHost(log, log, store, OWN, local=local)
            folds.append(timed(host.catch_up))
            hashes.append(timed(host.status))
            rebuilds.append(timed(host.rebuild))
            host.status()
            answers = list(queries(host))
            host.close()
            store.close()

            def start(path: Path = folder) -> None:
                again = SqliteViewStore(path / "views.db")
                host = ProjectionHost(log, log, again, OWN, local=local)
                host.catch_up()
                host.status()
                host.close()
                again.close()

            starts.append(timed(start))
            per_second = library(folder, log, min(5000, arguments.events))
    count = arguments.events
    fold, rebuild = statistics.median(folds), statistics.median(rebuilds)
    print(f"{count} events, {len(OWN)} views, median of {arguments.rounds}")
    print(f"  first fold of all views        {fold:8.2f} s   {count / fold:10.0f} events/s")
    print(f"  rebuild of all, beside the old {rebuild:8.2f} s   {count / rebuild:10.0f} events/s")
    print(f"  eventsourcing's runner, catalogue alone:      {per_second:10.0f} events/s")
    print(f"  hashes of all, from nothing    {statistics.median(hashes):8.2f} s")
    print(f"  start with views up to date    {statistics.median(starts):8.2f} s")
    for what, first, median in answers:
        print(f"  50 rows: {what:50} first {first:8.2f} ms   p50 {median:7.2f} ms")


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
