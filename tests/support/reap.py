"""Run a command with an end: within a time, and with everything that it started.

`python reap.py --limit SECONDS COMMAND…` ends with the command's exit code. Processes that the command left
behind (a node whose test was killed, say) become children of this one, and are ended too. Over the limit, the
command gets SIGABRT first, at which pytest's fault handler prints where each thread stands. Linux: elsewhere only
the limit holds. Uses nothing but the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 5.0
OVER_LIMIT = 124
"""Exit code when the limit was reached, as with timeout(1)."""


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Process ids of this process's children, adopted ones included."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in task.read_text().split())
    return found


def reap() -> None:
    """Collect what has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_all(grace: float = GRACE_SECONDS) -> int:
    """End every child, and whatever they leave behind in turn; return how many there were."""
    ended: set[int] = set()
    deadline = time.monotonic() + grace
    reap()
    while left := children():
        for pid in left - ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        ended |= left
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.05)
    return len(ended)


def run(command: list[str], limit: float) -> int:
    """Run `command` for at most `limit` seconds; return its exit code, or `OVER_LIMIT`."""
    adopt_orphans()
    process = subprocess.Popen(command)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"\nreap: over the limit of {limit:g} s; ending {command[0]}\n")
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        code = OVER_LIMIT
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        code = 130
    if left := end_all():
        sys.stderr.write(f"reap: ended {left} processes that were left behind\n")
    return code if code >= 0 else 128 - code


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, required=True, help="seconds")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments.command, arguments.limit)
    finally:
        end_all()


if __name__ == "__main__":
    raise SystemExit(main())
