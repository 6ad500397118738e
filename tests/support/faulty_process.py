"""The node's process with one planned crash: `VAULT_TEST_FAULT=name:n` kills it at the n-th pass of a fault point."""

from __future__ import annotations

import itertools
import os
import signal

from walytis_vault.domain import faults
from walytis_vault.process import main

FAULT_VARIABLE = "VAULT_TEST_FAULT"


def plan() -> None:
    """Install the hook that the environment asks for."""
    name, _, count = os.environ.get(FAULT_VARIABLE, "").partition(":")
    passes = itertools.count(1)
    last = int(count or 1)

    def hook(point: str) -> None:
        if point == name and next(passes) >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    if name:
        faults.install(hook)


if __name__ == "__main__":
    plan()
    main()
