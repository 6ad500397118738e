"""Processes that change a content store and are killed (SIGKILL) at a named fault point.

`StoreKiller` starts one process that has everything imported and forks a victim for each case, which is much
quicker than a fresh interpreter each time. Run as a script this file is that process.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from support.content_stores import AUTHOR, open_store
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.domain.faults import install
from walytis_vault.domain.ids import ContentId

VICTIM_SECONDS = 60
SURVIVED = 7


class StoreKiller:
    """Lets victims do things to stores and be killed. A context manager."""

    def __enter__(self) -> StoreKiller:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.communicate(timeout=VICTIM_SECONDS)

    def kill_mixed(self, home: Path, seed: str, fatal: int) -> bool:
        """Let a victim publish and forget at random (see `Ledger`); returns whether it was killed."""
        return self._ask("mixed", str(home), seed, str(fatal))

    def kill_at(self, fault: str, home: Path, action: str, *ids: ContentId) -> bool:
        """Let a victim do `action` on these contents; returns whether it was killed at the fault point.

        Args:
            action: "erase", "drop", "compact", "publish-small", "publish-large".
        """
        return self._ask(fault, str(home), action, *(i.hex() for i in ids))

    def _ask(self, *words: str) -> bool:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write("\t".join(words) + "\n")
        self._server.stdin.flush()
        answer = int(self._server.stdout.readline())
        if answer not in (-signal.SIGKILL, SURVIVED):
            raise AssertionError(f"the victim ended with {answer}; its error is on stderr")
        return answer == -signal.SIGKILL


class Ledger:
    """What a victim was told, outside the store: one line for each promise, written when it was made.

    Lines: `+ id root length padded` (published), `? id` (forgetting begins), `- id` (forgotten).
    """

    def __init__(self, home: Path) -> None:
        self._path = home.with_suffix(".ledger")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, *words: str) -> None:
        """Add a line in one write, which survives the process."""
        os.write(self._fd, (" ".join(words) + "\n").encode())

    def lines(self) -> list[list[str]]:
        """All lines so far."""
        return [line.split() for line in self._path.read_text().splitlines()]

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)


def plaintext_of(content_id: bytes, length: int) -> bytes:
    """What `mixed` victims publish under an id."""
    return hashlib.shake_256(content_id).digest(length)


def _mixed(home: Path, seed: str, fatal: int) -> None:
    """Publish and forget from four threads until the `fatal`-th fault point kills the process."""
    reached = itertools.count(1)
    store = open_store(home)

    def hook(_: str) -> None:
        if next(reached) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    install(hook)
    ledger = Ledger(home)

    def work(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        mine: list[ContentId] = []
        for _ in range(40):
            content_id = ContentId(chance.randbytes(16))
            length = chance.choice([0, 10, 1_000, 50_000, 200_000, 1_500_000])
            writer = store.writer(content_id, author=AUTHOR)
            writer.write(plaintext_of(content_id, length))
            stored = writer.finish()
            ledger.note("+", content_id.hex(), stored.root.hex(), str(length), str(stored.padded_length))
            mine.append(content_id)
            if chance.random() < 0.4:
                victim = mine.pop(chance.randrange(len(mine)))
                ledger.note("?", victim.hex())
                store.erase((victim,))
                ledger.note("-", victim.hex())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _kill_at(wanted: str) -> None:
    def hook(name: str) -> None:
        if name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    install(hook)


def _act(store: DiskContentStore, action: str, ids: list[ContentId]) -> None:
    if action == "erase":
        store.erase(tuple(ids))
    elif action == "drop":
        for content_id in ids:
            store.drop_bytes(content_id)
    elif action == "compact":
        store.erase(tuple(ids))
        store.compact(everything=True)
    else:
        writer = store.writer(ids[0], author=AUTHOR)
        writer.write(bytes(1_000 if action == "publish-small" else 2_000_000))
        writer.finish()


def _victim(line: str) -> None:
    signal.alarm(VICTIM_SECONDS)
    fault, home, action, *ids = line.rstrip("\n").split("\t")
    if fault == "mixed":
        _mixed(Path(home), action, int(ids[0]))
        os._exit(SURVIVED)
    store = open_store(Path(home))
    _kill_at(fault)
    _act(store, action, [ContentId(bytes.fromhex(text)) for text in ids])
    os._exit(SURVIVED)


def _serve() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _victim(line)
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
