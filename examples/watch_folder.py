"""Publish what is dropped into a folder: `python examples/watch_folder.py FOLDER [--home DIR]`.

A file is published when its size and time have not changed between two looks. Its request id is made from its
path, size and time, so a file is published once, however often this program is stopped and started.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
from pathlib import Path

from walytis_vault.client import Client
from walytis_vault.domain.errors import StorageError, TransportError

Seen = dict[Path, tuple[int, int]]


def look(folder: Path) -> Seen:
    """Size and time of each file."""
    found: Seen = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            info = path.stat()
            found[path] = (info.st_size, info.st_mtime_ns)
    return found


def request_id(path: Path, state: tuple[int, int]) -> bytes:
    """16 bytes that are the same for the same version of the same file."""
    return hashlib.sha256(f"{path.absolute()}\n{state[0]}\n{state[1]}".encode()).digest()[:16]


def watch(client: Client, folder: Path, stop: threading.Event, pause: float = 1.0) -> None:
    """Publish until told to stop."""
    before: Seen = {}
    done: Seen = {}
    while not stop.is_set():
        now = look(folder)
        for path, state in now.items():
            if before.get(path) == state != done.get(path):
                try:
                    published = client.publish(path, labels=("dropped",), request_id=request_id(path, state))
                except (StorageError, TransportError) as e:
                    print(f"{path.name}: {e}; trying again")
                    continue
                done[path] = state
                print(f"{path.name}: {published.content_id}", flush=True)
        before = now
        stop.wait(pause)


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--home", type=Path)
    args = parser.parse_args()
    with Client(args.home) as client:
        try:
            watch(client, args.folder, threading.Event())
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
