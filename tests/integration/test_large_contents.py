"""Large contents through a real node: memory stays where it was, in node and client, and nothing is left over."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.large import peak_kib
from support.peer_nodes import eventually
from walytis_vault import Client, Node

MOST_GROWTH_KIB = 128 << 10
CLIENT = """
import sys
from pathlib import Path
from support.large import Endless, Sink, peak_kib
from walytis_vault import Client
home, size = Path(sys.argv[1]), int(sys.argv[2])
with Client(home, timeout=120) as client:
    def round(size):
        source, sink = Endless(size), Sink()
        published = client.publish(source)
        client.request(published.content_id, to=sink)
        assert sink.digest == source.digest
        return published.content_id
    print(round(32 << 20), flush=True)
    before = peak_kib("self")
    sys.stdin.readline()
    print(round(size), flush=True)
    print(peak_kib("self") - before, flush=True)
"""


@pytest.mark.parametrize("mib", [pytest.param(160, id="160"), pytest.param(4096, id="4096", marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_content(tmp_path: Path, mib: int) -> None:
    """Publish and request of one large content grow neither the node nor the client by more than 128 MiB."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with Node.create(tmp_path / "home") as node:
        command = [sys.executable, "-c", CLIENT, str(node.home), str(mib << 20)]
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            first = child.stdout.readline().strip()
            before = peak_kib(str(node.pid))
            child.stdin.write("go\n")
            child.stdin.flush()
            second = child.stdout.readline().strip()
            growth = int(child.stdout.readline())
            assert child.wait(60) == 0
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
        assert growth <= MOST_GROWTH_KIB, f"the client grew by {growth >> 10} MiB"
        grown = peak_kib(str(node.pid)) - before
        assert grown <= MOST_GROWTH_KIB, f"the node grew by {grown >> 10} MiB"
        with Client(node.home, timeout=120) as client:
            assert client.forget(first, second).state == "carried"
        assert list((node.home / "store" / "blobs").iterdir()) == []


@pytest.mark.long
def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """A client that dies in the middle of an upload leaves no bytes, no key and no event in the vault."""
    program = (
        "import sys\nfrom support.large import Endless\nfrom walytis_vault import Client\n"
        "def watch(done, total):\n"
        "    if done >= 24 << 20:\n        print('far', flush=True)\n        sys.stdin.read()\n"
        "Client(sys.argv[1]).publish(Endless(64 << 20), progress=watch)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with Node.create(tmp_path / "home") as node, Client(node.home) as client:
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(node.home)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"far\n"
        blobs = node.home / "store" / "blobs"
        assert [p.suffix for p in blobs.iterdir()] == [".temp"]
        child.kill()
        child.communicate()
        eventually(lambda: not list(blobs.iterdir()), "what had come is removed", patience=90)
        assert client.query("catalogue") == []
        assert client.status().details["store"]["keys"] == 0
        data = io.BytesIO(hashlib.shake_256(b"x").digest(3 << 20))
        assert client.request(client.publish(data).content_id) == data.getvalue()
