"""A vault on a real disk that is really full: run inside a mount namespace of its own, by `test_full_disk.py`.

Prints one line for each thing that held. Usage: small_disk.py FOLDER MIB, FOLDER being where a tmpfs may be mounted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from walytis_vault import Client, ForgottenError, Node, StorageError, StorageFullError


def free(folder: Path) -> int:
    """Bytes that are free."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def fill(client: Client, size: int, most: int = 10_000) -> tuple[list[str], StorageError]:
    """Publish until the disk refuses; returns what was published, and the error."""
    ids: list[str] = []
    for _ in range(most):
        try:
            ids.append(client.publish(os.urandom(size)).content_id)
        except StorageError as e:
            return ids, e
    raise AssertionError("the disk never got full")


def main(folder: Path, mib: int) -> None:
    """Fill the disk, use the vault, forget, restart."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(folder)], check=True)
    home = folder / "home"
    with Node.create(home) as node, Client(home) as client:
        print("free after creation", free(folder) >> 10, "KiB", flush=True)
        small = {client.publish(b"small %d" % n * 100).content_id: b"small %d" % n * 100 for n in range(3)}
        victim = client.publish(os.urandom(200_000), name="victim").content_id
        position = client.status().position
        large, error = fill(client, 1 << 20)
        print("large ones refused:", type(error).__name__, error, free(folder) >> 10, "KiB free", flush=True)
        assert isinstance(error, StorageFullError)
        more, error = fill(client, 3000)
        print("small ones refused:", type(error).__name__, error, free(folder) >> 10, "KiB free", flush=True)
        assert isinstance(error, StorageError)
        (folder / "others").write_bytes(b"")
        with (folder / "others").open("wb", buffering=0) as other:
            while True:
                try:
                    other.write(bytes(4096))
                except OSError:
                    break
        print("another program took the rest:", free(folder), "bytes free", flush=True)
        for content_id, data in small.items():
            assert client.request(content_id) == data
        assert client.request(large[-1]) is not None
        assert client.status().position >= position
        print("reads work", flush=True)
        for wanted in (victim, *more[:2]):
            assert client.forget(wanted).state == "carried"
            try:
                client.request(wanted)
            except ForgottenError:
                continue
            raise AssertionError("it is still readable")
        print("forgetting works", flush=True)
        node.kill()
    with Node.open(home) as node, Client(home) as client:
        for content_id, data in small.items():
            assert client.request(content_id) == data
        assert client.query("catalogue", content_id=victim, state="all")[0].state == "forgotten"
        print("a restart works", flush=True)
        for wanted in large:
            assert client.forget(wanted).state == "carried"
        print("forgetting all large ones works", free(folder) >> 10, "KiB free", flush=True)
        assert client.request(client.publish(b"there is room again").content_id) == b"there is room again"
        assert client.audit(read_data=True)["ok"]
        print("publishing works again", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
