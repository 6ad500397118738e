"""Processes that change a content store and are killed (SIGKILL) at a named fault point.

`StoreKiller` starts one process that has everything imported and forks a victim for each case, which is much
quicker than a fresh interpreter each time. Run as a script this file is that process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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

    def kill_at(self, fault: str, home: Path, action: str, *ids: ContentId) -> bool:
        """Let a victim do `action` on these contents; returns whether it was killed at the fault point.

        Args:
            action: "erase", "compact", "publish-small", "publish-large".
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write("\t".join([fault, str(home), action, *(i.hex() for i in ids)]) + "\n")
        self._server.stdin.flush()
        answer = int(self._server.stdout.readline())
        if answer not in (-signal.SIGKILL, SURVIVED):
            raise AssertionError(f"the victim ended with {answer}; its error is on stderr")
        return answer == -signal.SIGKILL


def _kill_at(wanted: str) -> None:
    def hook(name: str) -> None:
        if name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    install(hook)


def _act(store: DiskContentStore, action: str, ids: list[ContentId]) -> None:
    if action == "erase":
        store.erase(tuple(ids))
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
