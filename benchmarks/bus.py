"""How fast the bus is, beside bare pyzmq with the same security in the same run; and what it holds in memory.

`python benchmarks/bus.py [--rounds 5] [--mib 256] [--large 4096]` prints medians. The vault behind the bus is in
memory and pretends its large contents, so that only the bus is measured; node and client are processes of their
own. Run it on a quiet machine: with two cores, everything else that runs is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zmq

sys.path[:0] = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parents[1] / "tests")]

from support.memory_service import MemoryService  # noqa: E402
from walytis_vault.bus.security import add_client, make_keys  # noqa: E402
from walytis_vault.bus.server import BusServer  # noqa: E402
from walytis_vault.client import Client  # noqa: E402

MIB = 1 << 20
CHUNK = 256 << 10


def peak() -> int:
    """Highest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def serve(home: Path, secret: str) -> None:
    """Child: a bus. Prints the ids of pretended contents on request, and its peak memory."""
    service = MemoryService()
    service.keep_bytes = False
    with BusServer(service, folder=home / "bus", keys=secret):
        print("ready", flush=True)
        for line in sys.stdin:
            print(peak() if line == "peak\n" else service.pretend(int(line)), flush=True)


def bare(path: str, secret: str) -> None:
    """Child: a ROUTER that echoes, answers with as many bytes as it is asked for, and sends as many chunks."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.curve_server, router.curve_secretkey = True, secret.encode()
    router.bind(f"ipc://{path}")
    print("ready", flush=True)
    data = bytes(CHUNK)
    while True:
        rid, message = router.recv_multipart()
        if message == b"end":
            break
        if message.startswith(b"reply "):
            router.send_multipart([rid, bytes(int(message[6 : message.index(b"|")]))])
        elif len(message) > 100:
            router.send_multipart([rid, message])
        else:
            for _ in range(int(message)):
                router.send_multipart([rid, data])
    context.destroy(linger=0)


class Child:
    """A process of this file, spoken to by lines."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        """What it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, text: object) -> str:
        """Say something, and take the answer."""
        assert self._process.stdin is not None
        print(text, file=self._process.stdin, flush=True)
        return self.line()

    def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@contextlib.contextmanager
def bare_socket(folder: Path) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER on a bare ROUTER in another process."""
    keys, own = make_keys(), make_keys()
    child = Child("bare", str(folder / "bare.ipc"), keys.secret)
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.curve_serverkey = keys.public.encode()
    dealer.curve_publickey, dealer.curve_secretkey = own.public.encode(), own.secret.encode()
    dealer.connect(f"ipc://{folder}/bare.ipc")
    yield dealer
    dealer.send(b"end")
    child.end()
    context.destroy(linger=0)


def exchange(dealer: zmq.Socket[bytes], sent: int, taken: int) -> None:
    """Send about so many bytes, and take so many."""
    dealer.send((b"reply %d|" % taken).ljust(sent))
    dealer.recv()


def latency(work: Callable[[], object], count: int = 1000) -> tuple[float, float]:
    """Median and 99th percentile of a call, in milliseconds."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - begun))
    times.sort()
    return times[count // 2], times[count * 99 // 100]


def rate(size: int, work: Callable[[], object]) -> float:
    """MiB/s of moving `size` bytes."""
    begun = time.perf_counter()
    work()
    return size / MIB / (time.perf_counter() - begun)


def bare_transfer(dealer: zmq.Socket[bytes], size: int) -> None:
    """Take `size` bytes in chunks, 32 of them on the way at any time."""
    left = granted = size // CHUNK
    dealer.send(b"%d" % min(32, granted))
    granted -= min(32, granted)
    while left:
        dealer.recv(copy=False)
        left -= 1
        if granted:
            dealer.send(b"1")
            granted -= 1


def eight_clients(home: Path, content_id: str, size: int) -> float:
    """MiB/s that each of 8 clients gets at once."""
    command = [sys.executable, __file__, "fetch", str(home), content_id]
    begun = time.perf_counter()
    children = [subprocess.Popen(command) for _ in range(8)]
    for child in children:
        child.wait()
    return size / MIB / (time.perf_counter() - begun)


def fetch(home: Path, content_id: str) -> None:
    """Child: one client that downloads."""
    with Client(home) as client:
        client.request(content_id, to=Path("/dev/null"))


def publishes(client: Client, count: int) -> float:
    """Publishes of 1 KiB each second, from 64 threads."""
    data = os.urandom(1024)
    begun = time.perf_counter()
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda _: client.publish(data), range(count)))
    return count / (time.perf_counter() - begun)


def subscribers(client: Client, count: int) -> float:
    """Milliseconds from a publish until all of `count` subscribers have it."""
    start = client.status().position
    follow = [client.subscribe("events", after=start) for _ in range(count)]
    client.publish(b"x")
    for subscription in follow:
        next(subscription)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        client.publish(b"x")
        for subscription in follow:
            next(subscription)
        times.append(1000 * (time.perf_counter() - begun))
    for subscription in follow:
        subscription.close()
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--large", type=int, default=4096, help="MiB of the content for the memory figures; 0: none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        if args.large:
            subprocess.run([sys.executable, __file__, "memory", text, str(args.large)], check=True)
        measure(Path(text), args.rounds, args.mib * MIB)


def measure(home: Path, rounds: int, size: int) -> None:
    """All figures, in rounds that alternate between the bare sockets and the bus."""
    node = start_node(home)
    content_id = node.ask(size)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    source, target = home / "source", home / "target"
    source.write_bytes(os.urandom(size))
    with bare_socket(home) as dealer, Client(home) as client:
        echo = bytes(1024)
        for _ in range(rounds):
            p50, p99 = latency(lambda: (dealer.send(echo), dealer.recv()))
            note("bare CURVE echo 1 KiB: p50 ms", p50)
            note("bare CURVE echo 1 KiB: p99 ms", p99)
            p50, p99 = latency(client.status)
            note("status: p50 ms", p50)
            note("status: p99 ms", p99)
            note("bare CURVE transfer: MiB/s", rate(size, lambda: bare_transfer(dealer, size)))
            note("download, no file: MiB/s", rate(size, lambda: client.request(content_id, to=Path("/dev/null"))))
            note("download to a file: MiB/s", rate(size, lambda: client.request(content_id, to=target)))
            note("upload from a file: MiB/s", rate(size, lambda: client.publish(source)))
            note("publish 1 KiB, 64 at once: 1/s", publishes(client, 2000))
        note("8 clients at once, each: MiB/s", eight_clients(home, content_id, size))
        note("event to 500 subscribers of one client: ms", subscribers(client, 500))
    for name, values in found.items():
        print(f"{name:48} {statistics.median(values):10.2f}")
    node.end()


def start_node(home: Path) -> Child:
    """A node on a home, in a process of its own."""
    if not (home / "bus").exists():
        add_client(home / "bus", "local")
    return Child("serve", str(home), make_keys().secret)


def memory(home: Path, large: int) -> None:
    """Growth of fresh processes over one large content down and up."""
    node = start_node(home)
    content_id = node.ask(large)
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb", buffering=0) as file:
            piece = memoryview(bytes(MIB))
            for _ in range(large // MIB):
                rest = piece
                while len(rest):
                    rest = rest[file.write(rest) :]

    with Client(home) as client:
        client.status()
        before = (int(node.ask("peak")), peak())
        client.request(content_id, to=Path("/dev/null"))
        thread = threading.Thread(target=feed)
        thread.start()
        with os.fdopen(read, "rb", buffering=0) as file:
            client.publish(file)
        thread.join()
        after = (int(node.ask("peak")), peak())
    print(f"{'growth over ' + str(large // MIB) + ' MiB down and up, node: MiB':48} {after[0] - before[0]:10}")
    print(f"{'the same, client: MiB':48} {after[1] - before[1]:10}")
    node.end()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", folder, secret_key]:
            serve(Path(folder), secret_key)
        case ["bare", socket_path, secret_key]:
            bare(socket_path, secret_key)
        case ["fetch", folder, wanted]:
            fetch(Path(folder), wanted)
        case ["memory", folder, mib]:
            memory(Path(folder), int(mib) * MIB)
        case _:
            main()
