"""Publish what is dropped into a folder: `python examples/watch_folder.py FOLDER [--home DIR]`.

A file is published when its size and time have not changed between two looks. Its request id is made from its
path, size and time, so a file is published once, however often this program is stopped and started.
"""

from __future__ import annotations

import argparse
import hmac
import os
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


def secret_of(folder: Path) -> bytes:
    """A secret that stays with the folder. The node keeps request ids for ever: a plain hash would confirm names."""
    path = folder / ".watch_folder.secret"
    if not path.exists():
        new = folder / f".watch_folder.{os.getpid()}"
        new.touch(0o600)
        new.write_bytes(os.urandom(32))
        new.replace(path)
    return path.read_bytes()


def request_id(secret: bytes, path: Path, state: tuple[int, int]) -> bytes:
    """16 bytes that are the same for the same version of the same file."""
    text = f"{path.absolute()}\n{state[0]}\n{state[1]}"
    return hmac.digest(secret, text.encode(), "sha256")[:16]


def watch(client: Client, folder: Path, stop: threading.Event, pause: float = 1.0) -> None:
    """Publish until told to stop."""
    before: Seen = {}
    done: Seen = {}
    secret = secret_of(folder)
    while not stop.is_set():
        now = look(folder)
        for path, state in now.items():
            if before.get(path) == state != done.get(path):
                key = request_id(secret, path, state)
                try:
                    published = client.publish(path, labels=("dropped",), request_id=key)
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
