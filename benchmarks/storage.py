"""How fast the content store is, beside the bare disk in the same run; and what it holds in memory.

`python benchmarks/storage.py [--rounds 5] [--large 4096]` prints medians: 1 KiB contents (alone, and from many
threads), 256 MiB written and read, by the store alone and through a real node over ipc, the growth of memory over one
content of --large MiB, and the time to open and to list a store of 100,000 contents. Run it on a quiet machine, and
twice: disks differ from minute to minute. CPU seconds say more than the clock where others work too.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from walytis_vault import Client, Node
from walytis_vault.adapters.crypto.sealing import KEY_BYTES
from walytis_vault.adapters.storage.committer import Arrival
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock, SystemRandomness
from walytis_vault.domain.ids import ContentId, ContentKey, Root
from walytis_vault.domain.ports import StoredContent

MIB = 1 << 20
AUTHOR = "did:walytis:benchmark"


def open_store(home: Path) -> DiskContentStore:
    """Open or create a store with a key file."""
    fs, folder = OsFileSystem(), home / "keys"
    keys = VaultKeys.open(folder, fs, None) if folder.exists() else VaultKeys.create(folder, fs, None)
    clock, randomness = SystemClock(), SystemRandomness()
    return DiskContentStore.open(
        home / "content", vault_id="benchmark", keys=keys, fs=fs, clock=clock, randomness=randomness
    )


def publish(store: DiskContentStore, piece: bytes, count: int = 1) -> StoredContent:
    """Store one content of `count` times `piece`."""
    writer = store.writer(ContentId(os.urandom(16)), author=AUTHOR)
    for _ in range(count):
        writer.write(piece)
    return writer.finish()


def read_all(store: DiskContentStore, stored: StoredContent) -> int:
    """Read one content; returns its bytes."""
    reader = store.reader(
        stored.content_id, author=AUTHOR, root=stored.root, length=stored.length, padded_length=stored.padded_length
    )
    total = 0
    while piece := reader.read():
        total += len(piece)
    reader.close()
    return total


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bare_sync(folder: Path) -> float:
    """Median milliseconds of one append of 1 KiB with fdatasync."""
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT, 0o600)
    times = []
    for i in range(200):
        os.pwrite(fd, b"x" * 1024, i * 1024)
        times.append(seconds(lambda: os.fdatasync(fd)) * 1e3)
    os.close(fd)
    (folder / "bare").unlink()
    return statistics.median(times)


def bare_write(folder: Path, piece: bytes, count: int) -> float:
    """MiB/s of writing a new file with one fsync at its end."""

    def write() -> None:
        fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT, 0o600)
        for i in range(count):
            os.pwrite(fd, piece, i * MIB)
        os.fsync(fd)
        os.close(fd)

    took = seconds(write)
    (folder / "bare").unlink()
    return count / took


def small(store: DiskContentStore, threads: int, total: int) -> float:
    """Contents of 1 KiB a second, each acknowledged when durable."""
    data = os.urandom(1024)

    def run() -> None:
        for _ in range(total // threads):
            publish(store, data)

    workers = [threading.Thread(target=run) for _ in range(threads)]

    def everything() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return total / seconds(everything)


def fill(store: DiskContentStore, count: int) -> None:
    """Put many contents in, past the writers: only what start and look-up depend on matters."""
    for start in range(0, count, 500):
        group = [
            Arrival(
                content_id=ContentId(os.urandom(16)),
                key=ContentKey(os.urandom(KEY_BYTES)),
                ciphertext=bytes(400),
                ciphertext_length=400,
                root=Root(bytes(32)),
            )
            for _ in range(min(500, count - start))
        ]
        with store._state.lock:
            store._committer._store(group)


def resident() -> float:
    """Resident MiB now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=4096, help="MiB of the content for the memory figure")
    parser.add_argument("--contents", type=int, default=100_000, help="contents of the store that is opened")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = open_store(folder)
        _measure_small(store, folder, arguments.rounds)
        _measure_large(store, folder, arguments.rounds)
        _measure_memory(store, arguments.large)
        store.close()
        full = open_store(folder / "full")
        fill(full, arguments.contents)
        full.close()
        reopened: list[DiskContentStore] = []
        took = seconds(lambda: reopened.append(open_store(folder / "full")))
        print(f"open a store of {arguments.contents} contents: {took:.2f} s")
        ids = reopened[0].content_ids()[:1000]
        took = seconds(lambda: (reopened[0].content_ids(), reopened[0].usage()))
        print(f"list them all, and what they take: {took:.2f} s")
        took = seconds(lambda: [reopened[0].content_key(i) for i in ids])
        print(f"look up a key in it: {took / len(ids) * 1e6:.0f} us")
        reopened[0].close()
        _measure_node(folder, arguments.rounds)
    return 0


def _measure_node(folder: Path, rounds: int) -> None:
    """256 MiB through a real node: bytes in memory on both sides, and a file; beside the bare disk in each round."""
    data, target = os.urandom(256 * MIB), folder / "out"
    rates: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with Node.create(folder / "node") as node, Client(node.home, timeout=300.0) as client:

        def measure(name: str, work: Callable[[], object]) -> None:
            before = cpu_seconds(str(node.pid)), cpu_seconds("self")
            rates.setdefault(name, []).append(256 / seconds(work))
            cpu.setdefault(f"{name}: node", []).append(cpu_seconds(str(node.pid)) - before[0])
            cpu.setdefault(f"{name}: client", []).append(cpu_seconds("self") - before[1])

        for _ in range(rounds):
            ids: list[str] = []
            measure("bare write and fsync", lambda: bare_write(folder, data[:MIB], 256))
            measure("publish", lambda ids=ids: ids.append(client.publish(data).content_id))  # type: ignore[misc]
            measure("request", lambda ids=ids: client.request(ids[0], to=Path("/dev/null")))  # type: ignore[misc]
            measure("request to a file", lambda ids=ids: client.request(ids[0], to=target))  # type: ignore[misc]
            client.forget(*ids)
    print("256 MiB through a node over ipc, medians        MiB/s   CPU s in node   CPU s in client")
    for name, found in rates.items():
        node_s, client_s = (statistics.median(cpu[f"{name}: {side}"]) for side in ("node", "client"))
        print(f"  {name:<44} {statistics.median(found):>6.0f} {node_s:>15.2f} {client_s:>17.2f}")


def cpu_seconds(pid: str) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _measure_small(store: DiskContentStore, folder: Path, rounds: int) -> None:
    alone = [seconds(lambda: publish(store, bytes(1024))) * 1e3 for _ in range(200)]
    print(
        f"1 KiB alone: {statistics.median(alone):.2f} ms (one bare append with fdatasync: {bare_sync(folder):.2f} ms)"
    )
    for threads in (8, 32):
        rates = [small(store, threads, 3200) for _ in range(rounds)]
        print(f"1 KiB from {threads} threads: {statistics.median(rates):.0f}/s (best {max(rates):.0f}/s)")


def _measure_large(store: DiskContentStore, folder: Path, rounds: int) -> None:
    piece = os.urandom(MIB)
    wrote, bare, read = [], [], []
    for _ in range(rounds):
        done: list[StoredContent] = []
        wrote.append(256 / seconds(lambda done=done: done.append(publish(store, piece, 256))))  # type: ignore[misc]
        bare.append(bare_write(folder, piece, 256))
        read.append(256 / seconds(lambda done=done: read_all(store, done[0])))  # type: ignore[misc]
        store.erase((done[0].content_id,))
    print(
        f"256 MiB in: {statistics.median(wrote):.0f} MiB/s (bare write and fsync: {statistics.median(bare):.0f} MiB/s)"
    )
    print(f"256 MiB out, verified and decrypted: {statistics.median(read):.0f} MiB/s")


def _measure_memory(store: DiskContentStore, large: int) -> None:
    before = resident()
    stored = publish(store, os.urandom(MIB), large)
    read_all(store, stored)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{large} MiB in and out: {peak - before:.0f} MiB more memory at most")
    store.erase((stored.content_id,))


if __name__ == "__main__":
    sys.exit(main())
