"""The bus in front of a real node on a real chain: client processes that publish, request and follow.

`python benchmarks/bus_node.py [--rounds 3] [--mib 256] [--publishes 500]` prints medians, and of each target whether it
is met. Every publish counts when it is acknowledged: ciphertext and event on disk, and the event's block on the chain.
Beside it in the same run: pyzmq with CURVE, for exchanges of as many bytes as the call before and for the large
transfer, and a bare block as upstream makes it (see `benchmarks/log.py`). Node and clients share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("src", "tests", "benchmarks")]

from bus import MIB, bare_socket, bare_transfer, exchange, latency, rate  # noqa: E402
from log import upstream_block  # noqa: E402

from walytis_vault import AsyncClient, Client, Node  # noqa: E402

PROCESSES = 8
AT_ONCE = 16
"""Publishes that each process has under way."""


TARGETS: list[tuple[str, str, str, float]] = [
    ("publish 1 KiB, 8 processes, on the chain: 1/s", "", ">=", 1000),
    ("publish 1 KiB, one at a time: p50 ms", "bare block of upstream: p50 ms", "<=", 2),
    ("request 1 KiB: p50 ms", "", "<=", 1),
    ("request, no file: MiB/s", "", ">=", 600),
    ("8 clients at once, each: MiB/s", "", ">=", 64),
]
"""What, divided by what (or nothing), and the bound."""


def judged(medians: dict[str, float]) -> None:
    """Print each target, and whether it is met."""
    for name, by, sign, bound in TARGETS:
        value = medians[name] / (medians[by] if by else 1)
        met = value >= bound if sign == ">=" else value <= bound
        print(f"{name + (f' / {by}' if by else ''):88} {value:8.2f} {sign} {bound:g}: {'met' if met else 'MISSED'}")


def per_call(client: Client, work: Callable[[], object]) -> tuple[int, int]:
    """Bytes to and from the node for one call, as the node counts them."""

    def totals() -> dict[str, int]:
        found: dict[str, int] = client.status().details["bus"]["totals"]
        return found

    first, between = totals(), totals()
    work()
    last = totals()
    names = ("bytes_in", "bytes_out")
    sent, taken = (last[name] - 2 * between[name] + first[name] for name in names)
    return sent, taken


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def publisher(home: Path, count: int) -> None:
    """Child: publish `count` contents of 1 KiB, and say how much processor time that took."""
    async with AsyncClient(home, timeout=120) as client:
        await client.status()
        print("ready", flush=True)
        sys.stdin.readline()
        began, left = time.process_time(), iter(range(count))

        async def work() -> None:
            for _ in left:
                await client.publish(os.urandom(1024))

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        print(time.process_time() - began, flush=True)


def publishers(node: Node, count: int, note: Callable[[str, float], None]) -> None:
    """Publishes a second from all processes together."""
    command = [sys.executable, __file__, "publish", str(node.home), str(count)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(PROCESSES)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    used, began = cpu_seconds(node.pid), time.perf_counter()
    spent = 0.0
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        assert child.stdout is not None
        spent += float(child.stdout.readline())
    seconds, total = time.perf_counter() - began, count * PROCESSES
    note("publish 1 KiB, 8 processes, on the chain: 1/s", total / seconds)
    note("  node's processor time for each: ms", 1000 * (cpu_seconds(node.pid) - used) / total)
    note("  client's processor time for each: ms", 1000 * spent / total)
    note("  share of one core that the node got: %", 100 * (cpu_seconds(node.pid) - used) / seconds)
    for child in children:
        child.wait(30)
        for stream in (child.stdin, child.stdout):
            assert stream is not None
            stream.close()


def fetchers(home: Path, content_id: str, size: int) -> float:
    """MiB/s that each of 8 clients gets at once."""
    command = [sys.executable, __file__, "fetch", str(home), content_id]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    began = time.perf_counter()
    for child in children:
        child.communicate(b"\n")
    return size / MIB / (time.perf_counter() - began)


def fetch(home: Path, content_id: str) -> None:
    """Child: wait for the word, then request."""
    with Client(home, timeout=120) as client:
        client.status()
        print("ready", flush=True)
        sys.stdin.readline()
        client.request(content_id, to=Path("/dev/null"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--publishes", type=int, default=500, help="of each process in each round")
    args = parser.parse_args()
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    size = args.mib * MIB
    with (
        tempfile.TemporaryDirectory() as text,
        Node.create(Path(text) / "v") as node,
        bare_socket(Path(text)) as dealer,
    ):
        source, target, echo = Path(text) / "source", Path(text) / "target", bytes(1024)
        source.write_bytes(os.urandom(size))
        with Client(node.home, timeout=120) as client:
            small = client.publish(os.urandom(1024)).content_id
            for _ in range(args.rounds):
                p50, p99 = latency(lambda: (dealer.send(echo), dealer.recv()))
                note("bare CURVE echo 1 KiB: p50 ms", p50)
                note("bare CURVE echo 1 KiB: p99 ms", p99)
                note("bare block of upstream: p50 ms", upstream_block())
                note("bare CURVE transfer: MiB/s", rate(size, lambda: bare_transfer(dealer, size)))
                for name, work in {
                    "wait_for (the bus alone)": lambda: client.wait_for(1),
                    "request 1 KiB": lambda: client.request(small),
                    "status": client.status,
                }.items():
                    sent, taken = per_call(client, work)
                    bare, _ = latency(lambda s=sent, t=taken: exchange(dealer, s, t), 500)
                    p50, p99 = latency(work, 500)
                    note(f"{name}: p50 ms", p50)
                    note(f"{name}: p99 ms", p99)
                    note(f"  a bare exchange of as many bytes as {name}: p50 ms", bare)
                    note(f"  {name} / bare: p50", p50 / bare)
                p50, p99 = latency(lambda: client.publish(os.urandom(1024)), 200)
                note("publish 1 KiB, one at a time: p50 ms", p50)
                note("publish 1 KiB, one at a time: p99 ms", p99)
                publishers(node, args.publishes, note)
                began = time.perf_counter()
                large = client.publish(source).content_id
                note("publish from a file: MiB/s", args.mib / (time.perf_counter() - began))
                for name, to in (("no file", Path("/dev/null")), ("to a file", target)):
                    note(f"request, {name}: MiB/s", rate(size, lambda to=to, large=large: client.request(large, to=to)))
                note("8 clients at once, each: MiB/s", fetchers(node.home, large, size))
                client.forget(large)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name, values in found.items():
        print(f"{name:72} {statistics.median(values):10.2f}")
    judged({name: statistics.median(values) for name, values in found.items()})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["publish", folder, number]:
            asyncio.run(publisher(Path(folder), int(number)))
        case ["fetch", folder, wanted]:
            fetch(Path(folder), wanted)
        case _:
            main()
