"""How fast contents go from one real node to another, beside bare Walytis blocks and walytis_offchain 0.5.4.

`python benchmarks/peers.py [--rounds 5] [--mib 256] [--contents 10000] [--only fetch,deliver,idle,offchain]` prints
medians, with the processor time of both nodes and the load, since two nodes, two kubos and a client share the machine.
walytis_offchain is measured when it can be imported: `pip install --no-deps walytis_offchain==0.5.4`. Everything
stays on 127.0.0.1 and in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parents[1] / "tests")]

from support import nodes  # noqa: E402
from walytis_vault import Client, Node, NotYetAvailableError, UnknownIdError  # noqa: E402
from walytis_vault.node import join_vault  # noqa: E402

MIB = 1 << 20
WAIT_S = 300.0
IDLE_S = 60.0
GIVE_UP_S = 10.0
"""Seconds after which a bare block counts as lost."""
OFFCHAIN_CONTENTS = 4


def cpu(node: Node) -> float:
    """Processor seconds of a node's process so far."""
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(name: str, text: str) -> None:
    """One line of the report."""
    print(f"{name:<44}{text}   (load {os.getloadavg()[0]:.1f})", flush=True)


def until(look: Callable[[], object], what: str) -> None:
    """Wait for something, within a bound."""
    end, pause = time.monotonic() + WAIT_S, threading.Event()
    while not look():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain: {what}")
        pause.wait(0.02)


class Pair:
    """Two connected members' nodes."""

    def __init__(self, folder: Path, **options: str) -> None:
        """Open them; the second with these options of `Node.open`."""
        self._nodes = Node.open(folder / "a"), Node.open(folder / "b", **options)
        self.a, self.b = (Client(node.home, timeout=WAIT_S) for node in self._nodes)
        for client in (self.a, self.b):
            client.__enter__()
        until(lambda: self.a.status().peers and self.b.status().peers, "the two nodes meet")

    def cpu(self) -> list[float]:
        """Processor seconds of both."""
        return [cpu(node) for node in self._nodes]

    def publish(self, data: bytes) -> str:
        """Publish on the first; wait until the second knows of it."""
        content_id = self.a.publish(data).content_id
        until(lambda: self.readable(content_id) is not None, "the other hears of it")
        return content_id

    def readable(self, content_id: str) -> str | None:
        """The content's state on the second node."""
        rows = self.b.query("catalogue", limit=None, content_id=content_id)
        return rows[0].state if rows else None

    def close(self) -> None:
        """Stop both."""
        for client in (self.a, self.b):
            client.__exit__(None, None, None)
        for node in self._nodes:
            node.close()


def fetch(folder: Path, rounds: int, size: int) -> None:
    """A large content from a peer and again from the own disk; the first byte of small ones."""
    pair = Pair(folder, fetch="on-request")
    rates: dict[str, list[float]] = {"from a peer": [], "again, from the own disk": []}
    used: dict[str, list[list[float]]] = {name: [] for name in rates}
    for _ in range(rounds):
        data = os.urandom(size)
        content_id = pair.publish(data)
        for name in rates:
            before, begun = pair.cpu(), time.monotonic()
            got = pair.b.request(content_id)
            rates[name].append(size / MIB / (time.monotonic() - begun))
            if got != data:
                raise SystemExit("wrong bytes")
            used[name].append([now - then for now, then in zip(pair.cpu(), before, strict=True)])
    for name, found in rates.items():
        spent = [statistics.median(column) for column in zip(*used[name], strict=True)]
        figures = f"{statistics.median(found):7.0f} MiB/s, best {max(found):.0f}"
        say(f"{size // MIB} MiB {name}", f"{figures}; node seconds {spent[0]:.2f} + {spent[1]:.2f}")
    times = []
    for _ in range(10 * rounds):
        content_id = pair.publish(os.urandom(500))
        begun = time.monotonic()
        pair.b.request(content_id)
        times.append(1e3 * (time.monotonic() - begun))
    say("500 bytes from a peer, on request, p50", f"{statistics.median(times):7.1f} ms (goal 50)")
    pair.close()


def bare_delivery(folder: Path, times: int, *, fast: bool) -> float:
    """Median milliseconds from appending a block on one node until another has it, with nothing of ours around.

    Args:
        fast: with our fast paths on both nodes; else upstream's own code.
    """
    running = nodes.Nodes(folder)
    try:
        chain, other, _, _ = nodes.joined(running, 0, proven=fast, maker_proven=fast)
        pause, taken = threading.Event(), list[float]()
        for number in range(times + 1):
            begun = time.monotonic()
            block = chain.append(b"bare %d" % number)
            # Upstream's own code does not always tell of a block, and sometimes never gets it: so look, and give up.
            while other.find(block.key) is None and time.monotonic() < begun + GIVE_UP_S:
                pause.wait(0.002)
            if number:  # the first one also waits for the two to meet
                taken.append(1e3 * (time.monotonic() - begun))
    finally:
        running.kill_all()
    return statistics.median(taken)


def deliver(folder: Path, rounds: int) -> None:
    """Publish on one node until the bytes can be read on the other, beside a bare block's way: upstream's and ours."""
    theirs = bare_delivery(folder / "bare", 10 * rounds, fast=False)
    bare = bare_delivery(folder / "fast", 10 * rounds, fast=True)
    pair, taken, pause = Pair(folder, fetch="small"), [], threading.Event()
    for _ in range(10 * rounds):
        begun = time.monotonic()
        content_id = pair.a.publish(os.urandom(500)).content_id
        while True:
            try:
                pair.b.request(content_id)
                break
            except (UnknownIdError, NotYetAvailableError):
                pause.wait(0.001)
        taken.append(1e3 * (time.monotonic() - begun))
    pair.close()
    ours = statistics.median(taken)
    say("publish until readable on the other, p50", f"{ours:7.1f} ms (goal 150)")
    say("a bare block, upstream's own code, p50", f"{theirs:7.1f} ms; ratio {ours / theirs:.2f} (goal 2)")
    say("a bare block on our fast paths, p50", f"{bare:7.1f} ms; ratio {ours / bare:.2f}")


def idle(folder: Path, contents: int) -> None:
    """Processor time of two connected nodes that have nothing to do."""
    pair = Pair(folder, fetch="small")

    def fill(count: int) -> None:
        with Client(folder / "a", timeout=WAIT_S) as client:
            for number in range(count):
                client.publish(number.to_bytes(100, "big"))

    threads = [threading.Thread(target=fill, args=(contents // 8,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: pair.b.status().details["fetching"] == 0, "all contents came")
    until(lambda: pair.a.status().position == pair.b.status().position, "both logs are equal")
    before, begun = pair.cpu(), time.monotonic()
    threading.Event().wait(IDLE_S)
    took = time.monotonic() - begun
    shares = [100 * (now - then) / took for now, then in zip(pair.cpu(), before, strict=True)]
    pair.close()
    say(f"idle and connected, {contents} contents", f"{shares[0]:.1f} % and {shares[1]:.1f} % of a core (goal 4)")


# -- walytis_offchain -----------------------------------------------------------------------------------------------


def offchain(folder: Path) -> None:
    """The system that this one replaces: how long adding takes, and when another node has it."""
    if find_spec("walytis_offchain") is None:
        print("walytis_offchain is not there: pip install --no-deps walytis_offchain==0.5.4, then run this again")
        return
    (folder / "offchain").mkdir()
    children = []
    for role in "ab":
        with (folder / "offchain" / f"{role}.log").open("wb") as log:
            command = [sys.executable, __file__, "--offchain-child", role, str(folder / "offchain")]
            children.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
    try:
        for child in children:
            child.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        print("walytis_offchain did not end in time; what it had:")
    finally:
        for child in children:
            child.kill()
            child.wait()
    found = [_left(folder / "offchain", role) for role in "ab"]
    if not all(found):
        print(f"walytis_offchain did not work here: {(folder / 'offchain' / 'b.log').read_text()[-300:]}")
        return
    added, seen = found
    took = [end - begin for begin, end in added]
    late = [at - begin for (begin, _), at in zip(added, seen, strict=False)]
    say(
        "walytis_offchain: one add, p50",
        f"{statistics.median(took):7.2f} s, {1 / statistics.median(took):.2f} a second",
    )
    say(
        "walytis_offchain: until the other has it, p50",
        f"{statistics.median(late):7.2f} s, {len(seen)} of {len(added)}",
    )


def _left(folder: Path, name: str) -> list[list[float]]:
    path = folder / f"{name}.json"
    found: list[list[float]] = json.loads(path.read_text()) if path.exists() else []
    return found


def offchain_child(role: str, folder: Path) -> None:
    """One of its two nodes, with upstream's own code paths. Ends the process."""
    from walytis_vault.adapters.walytis import upstream
    from walytis_vault.adapters.walytis.runtime import WalytisRuntime

    def put(name: str, value: object) -> None:
        (folder / f"{name}.new").write_text(json.dumps(value))
        (folder / f"{name}.new").rename(folder / f"{name}.json")

    def get(name: str) -> str:
        until(lambda: (folder / f"{name}.json").exists(), name)
        return str(json.loads((folder / f"{name}.json").read_text()))

    home = folder / role
    (home / "content").mkdir(parents=True)
    os.environ["PRIVATE_BLOCKS_DATA_DIR"] = str(home / "content")
    upstream.versions_are_proven = lambda: False  # type: ignore[assignment]
    runtime = WalytisRuntime.start(home, peers=() if role == "a" else (get("address"),))
    from walytis_identities import DidManager, GroupDidManager
    from walytis_identities.key_objects import Key
    from walytis_identities.key_store import KeyStore
    from walytis_offchain import PrivateBlockchain

    key = Key.create("EC-secp256k1")
    device = DidManager.create(KeyStore(str(home / "device.json"), key))
    group_keys = KeyStore(str(home / "group.json"), key)
    if role == "a":
        put("address", runtime.addresses[0])
        group = GroupDidManager.create(group_keys, device)
        invitation = group.invite_member()
        invitation["ipfs_addresses"] = [runtime.addresses[0].partition("/p2p/")[0]]
        put("invitation", json.dumps(invitation))
        store, added = PrivateBlockchain(group), []
        get("joined")
        for number in range(OFFCHAIN_CONTENTS):
            begun = time.time()
            store.add_block(b"content %d" % number)
            added.append((begun, time.time()))
        put("a", added)
        get("done")
    else:
        runtime.connect(get("address"))
        group = GroupDidManager.join(json.loads(get("invitation")), group_keys, device)
        store, seen = PrivateBlockchain(group), list[float]()
        put("joined", True)
        pause, end = threading.Event(), time.monotonic() + WAIT_S / 2
        while len(seen) < OFFCHAIN_CONTENTS and time.monotonic() < end:
            seen += [time.time()] * (store.get_num_blocks() - len(seen))
            pause.wait(0.05)
        put("b", seen)
        put("done", True)
    os._exit(0)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--contents", type=int, default=10_000)
    parser.add_argument("--only", default="fetch,deliver,idle,offchain")
    parser.add_argument("--offchain-child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.offchain_child:
        offchain_child(arguments.offchain_child[0], Path(arguments.offchain_child[1]))
    wanted = arguments.only.split(",")
    with tempfile.TemporaryDirectory(prefix="wv-") as temporary:
        folder = Path(temporary)
        if set(wanted) & {"fetch", "deliver", "idle"}:
            with Node.create(folder / "a"), Client(folder / "a") as inviter:
                join_vault(folder / "b", inviter.invite(expires=600))
        if "fetch" in wanted:
            fetch(folder, arguments.rounds, arguments.mib * MIB)
        if "deliver" in wanted:
            deliver(folder, arguments.rounds)
        if "idle" in wanted:
            idle(folder, arguments.contents)
        if "offchain" in wanted:
            offchain(folder)


if __name__ == "__main__":
    main()
