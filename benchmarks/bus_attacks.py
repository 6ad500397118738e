"""What a hostile client costs the others: latency of a well-behaved one and the node's memory, attack by attack.

`python benchmarks/bus_attacks.py [--seconds 3] [--rounds 5] [--only NAME ...]`: each attack is a process with a key of
its own against a fresh real node, so that none is measured in what another left behind. Peace and attack take turns, so
that each ratio compares within one run; others' 99th percentile is to stay within 2 times. The control, `spin`, only
computes and never speaks to the node: what it costs is what the processor costs, not the bus. So each is measured
twice: with all on all cores ("shared"), and with the attacker alone on the last core, node and client on the others
("apart"), where the control costs little, and so what is left is what the attack makes the node do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import zmq

sys.path[:0] = [str(Path(__file__).parents[1] / "src")]

from walytis_vault import Client, Node  # noqa: E402
from walytis_vault.bus.calls import OpenCall, PublishCall, QueryCall, StatusCall, SubscribeCall  # noqa: E402
from walytis_vault.bus.endpoint import read_record  # noqa: E402
from walytis_vault.bus.protocol import Kind, Nothing, pack  # noqa: E402
from walytis_vault.bus.security import add_client, load_key  # noqa: E402

MIB = 1 << 20
LARGE = 64 * MIB
SETTLE_S = 90.0
"""Seconds until a node must have let go of a client that is gone."""


def dealer(home: Path) -> zmq.Socket[bytes]:
    """A connection with the attacker's key."""
    record, key = read_record(home / "bus"), load_key(home / "bus" / "attacker.key")
    s = zmq.Context.instance().socket(zmq.DEALER)
    s.linger, s.rcvhwm, s.sndtimeo = 200, 1, 200  # what was sent before a close goes out still
    s.curve_serverkey = record.server_key.encode()
    s.curve_publickey, s.curve_secretkey = key.public_key.encode(), key.secret_key.encode()
    s.connect(record.endpoint)
    return s


def send(s: zmq.Socket[bytes], parts: list[bytes | memoryview]) -> bool:
    """Send; False when the node takes nothing."""
    try:
        s.send_multipart(parts)
    except zmq.Again:
        return False
    return True


def stalled(home: Path, content: str) -> None:
    """Grants endless credit for large contents and takes nothing."""
    sockets = [dealer(home) for _ in range(4)]
    for s in sockets:
        for _ in range(4):
            call = OpenCall(content_id=content, limit=1 << 50, timeout_ms=1000)
            send(s, pack(Kind.REQUEST, secrets.token_bytes(16), call))
    time.sleep(3600)


def no_credit(home: Path, content: str) -> None:
    """Opens what it may and never grants anything."""
    s = dealer(home)
    for _ in range(64):
        send(s, pack(Kind.REQUEST, secrets.token_bytes(16), OpenCall(content_id=content, limit=0, timeout_ms=1000)))
    for _ in range(500):
        send(s, pack(Kind.REQUEST, secrets.token_bytes(16), SubscribeCall(view="events", after=0, limit=0)))
    time.sleep(3600)


def garbage(home: Path, _content: str) -> None:
    """Sends noise; connects again when it is cut."""
    while True:
        s = dealer(home)
        for _ in range(64):
            send(s, [secrets.token_bytes(21), secrets.token_bytes(1000)])
        s.close()


def churn(home: Path, _content: str) -> None:
    """Makes a connection for each request, as many at once as threads go, and reads what it asked for."""

    def again() -> None:
        while True:
            s = dealer(home)
            send(s, pack(Kind.REQUEST, secrets.token_bytes(16), StatusCall()))
            s.poll(1000)
            s.close()

    for _ in range(16):
        threading.Thread(target=again, daemon=True).start()
    time.sleep(3600)


def streams(home: Path, content: str) -> None:
    """Opens a thousand streams, again and again."""
    while True:
        s = dealer(home)
        for _ in range(1000):
            send(s, pack(Kind.REQUEST, secrets.token_bytes(16), OpenCall(content_id=content, limit=0, timeout_ms=1000)))
        s.close()


def parts(home: Path, _content: str) -> None:
    """Sends messages of 60 parts of 1 MB."""
    while True:
        s = dealer(home)
        send(s, [bytes(1_000_000)] * 60)
        time.sleep(0.1)
        s.close()


def endless(home: Path, _content: str) -> None:
    """Sends messages of thousands of parts, each as large as a part may be."""
    part = bytes(200_000)
    while True:
        s = dealer(home)
        for _ in range(10_000):
            s.send(part, zmq.SNDMORE, copy=False)
        s.sndtimeo = 5000
        send(s, [b""])
        time.sleep(5)
        s.close()


def loris(home: Path, _content: str) -> None:
    """Holds 300 connections that never finish their handshake."""
    path = read_record(home / "bus").endpoint.removeprefix("ipc://")
    held = [socket.socket(socket.AF_UNIX) for _ in range(300)]
    for s in held:
        s.connect(path)
        s.sendall(os.urandom(5))
    time.sleep(3600)


def flood(home: Path, _content: str) -> None:
    """Asks what it may as fast as it can, and takes the answers."""
    s = dealer(home)
    while True:
        send(s, pack(Kind.REQUEST, secrets.token_bytes(16), StatusCall()))
        while s.poll(0):
            s.recv_multipart()


def unread(home: Path, _content: str) -> None:
    """Asks for large pages and takes none; connects again when it is cut."""
    while True:
        s = dealer(home)
        for _ in range(2000):
            send(s, pack(Kind.REQUEST, secrets.token_bytes(16), QueryCall(view="catalogue", limit=500)))
        s.close()


def held(home: Path, _content: str) -> None:
    """Opens uploads over many connections, keeps their grants alive and sends nothing."""
    sockets = [(dealer(home), secrets.token_bytes(16)) for _ in range(64)]
    while True:
        for s, stream in sockets:
            send(s, pack(Kind.REQUEST, stream, PublishCall(inline=False)))
            send(s, pack(Kind.PING, stream, Nothing()))
        time.sleep(5)


def cancelled(home: Path, content: str) -> None:
    """Opens and cancels in turns."""
    s = dealer(home)
    while True:
        stream = secrets.token_bytes(16)
        send(s, pack(Kind.REQUEST, stream, OpenCall(content_id=content, limit=0, timeout_ms=1000)))
        send(s, pack(Kind.CANCEL, stream, Nothing()))
        while s.poll(0):
            s.recv_multipart()


def end_with_parent() -> None:
    """Whatever becomes of the measuring process, its attackers end with it: stdin is a pipe from there."""
    sys.stdin.buffer.read()
    os._exit(0)


def spin(_home: Path, _content: str) -> None:
    """Computes, and leaves the node alone."""
    while True:
        pass


ATTACKS: dict[str, Callable[[Path, str], None]] = {
    "spin": spin,
    "stalled": stalled,
    "no_credit": no_credit,
    "garbage": garbage,
    "churn": churn,
    "streams": streams,
    "parts": parts,
    "endless": endless,
    "loris": loris,
    "flood": flood,
    "unread": unread,
    "held": held,
    "cancelled": cancelled,
}


def measure(work: Callable[[], object], seconds: float) -> list[float]:
    """Sorted milliseconds of a call, again and again for so long."""
    times, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times)


def resident(pid: int) -> int:
    """Resident MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // MIB


def attack(name: str, seconds: float, rounds: int) -> None:
    """Measure one and print its line."""
    with tempfile.TemporaryDirectory() as text, Node.create(Path(text) / "v") as node:
        add_client(node.home / "bus", "attacker", ["read", "publish"])
        with Client(node.home, timeout=60) as client:
            small = client.publish(os.urandom(1024)).content_id
            large = client.publish(os.urandom(LARGE)).content_id
            for number in range(60):  # so that a page is large
                client.publish(b"x", name=f"{number:04}" * 1000)
            data = os.urandom(300_000)

            def work() -> object:
                return client.publish(data) if name == "held" else client.request(small)

            measure(work, 2.0)  # a node that has just begun is slower
            cores = sorted(os.sched_getaffinity(0))
            runs: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
            before = most = resident(node.pid)
            start = client.status().details["bus"]["totals"]
            for _ in range(rounds):
                for place, ours, theirs in (("shared", cores, cores), ("apart", cores[:-1], cores[-1:])):
                    pin(node.pid, ours)
                    pin(os.getpid(), ours)
                    settle(client)
                    runs[place, "peace"].append(measure(work, seconds))
                    command = [sys.executable, __file__, name, str(node.home), large, *map(str, theirs)]
                    child = subprocess.Popen(command, stdin=subprocess.PIPE)
                    try:
                        measure(work, 1.0)  # until it is under way
                        until, times = time.monotonic() + seconds, []
                        while time.monotonic() < until:
                            times += measure(work, 0.5)
                            most = max(most, resident(node.pid))
                        runs[place, "attack"].append(sorted(times))
                    finally:
                        child.kill()
                        child.wait()
            pin(os.getpid(), cores)
            end = client.status().details["bus"]["totals"]
    line = f"{name:10}"
    for place in ("shared", "apart"):
        peace, attack = (median(runs[place, state], 99) for state in ("peace", "attack"))
        half = median(runs[place, "attack"], 50) / median(runs[place, "peace"], 50)
        line += f"{peace:8.2f}{attack:8.2f}{half:6.2f}{attack / peace:6.2f}"
    cut, errors, shut = (end[what] - start[what] for what in ("cut", "errors", "shut"))
    print(f"{line}{before:7}{most:6}{cut:6}{errors:7}{shut:6}", flush=True)


def median(runs: list[list[float]], percentile: int) -> float:
    """Of the percentile of each run."""
    return statistics.median(times[len(times) * percentile // 100] for times in runs)


def pin(pid: int, cores: list[int]) -> None:
    """Let all threads of a process, and those that they start, run on these cores only."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def settle(client: Client) -> None:
    """Wait until the node has let go of what an earlier attacker left, so that peace is peace."""
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        bus = client.status().details["bus"]
        if not (bus["downloads"] or bus["uploads"] or bus["subscriptions"] or any(bus["queued"].values())):
            return
        time.sleep(0.5)
    raise SystemExit(f"the node holds on to what an attacker left: {bus}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(ATTACKS), default=list(ATTACKS))
    args = parser.parse_args()
    print("p99 in peace and under attack (ms), and how many times as long p50 and p99 are; MiB of the node")
    print("attack      shared: p99, attack, p50x, p99x   apart: the same       MiB  most   cut errors  shut")
    for name in args.only:
        attack(name, args.seconds, args.rounds)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ATTACKS:
        threading.Thread(target=end_with_parent, daemon=True).start()
        os.sched_setaffinity(0, map(int, sys.argv[4:]))
        ATTACKS[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
    else:
        main()
