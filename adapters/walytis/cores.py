"""How many cores the embedded IPFS node may use at once: half of them, since the other half does our part of the work.

Go makes as many threads as the thread that loads it may use cores, and those that find nothing to do keep looking for
it: on two cores that was an eighth of the processor time of a transfer. `GOMAXPROCS` in the environment says otherwise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def half_of_them() -> Iterator[None]:
    """Load Go inside this block, until it runs. Afterwards every thread of this process may use all cores again."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    # A variable set now would come too late: Go reads the block that the process was started with.
    os.sched_setaffinity(0, cores[: max(1, len(cores) // 2)])
    try:
        yield
    finally:
        for _ in "ab":  # the second time for those that began during the first
            for thread in Path("/proc/self/task").iterdir():
                with contextlib.suppress(OSError):  # it has ended
                    os.sched_setaffinity(int(thread.name), cores)
