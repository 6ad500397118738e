"""The node's process at a pace that a test needs, so that what it shows does not depend on the machine's.

`VAULT_TEST_MEET=folder:n`: it hands out no segment before n nodes are asked for one. `VAULT_TEST_PATIENT`: as one
that fetches, it never takes a holder for slow.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from walytis_vault.domain import faults
from walytis_vault.peers.delivery import Delivery
from walytis_vault.process import main

MEET_VARIABLE = "VAULT_TEST_MEET"
PATIENT_VARIABLE = "VAULT_TEST_PATIENT"
LONGEST_S = 60.0


def meet_at(folder: Path, count: int) -> None:
    """Install the hook that waits for the others; bounded."""
    pause = threading.Event()

    def hook(point: str) -> None:
        if point != "serve.before_segment":
            return
        (folder / str(os.getpid())).touch()
        until = time.monotonic() + LONGEST_S
        while len(list(folder.iterdir())) < count and time.monotonic() < until:
            pause.wait(0.02)

    faults.install(hook)


if __name__ == "__main__":
    if meeting := os.environ.get(MEET_VARIABLE):
        place, _, number = meeting.rpartition(":")
        meet_at(Path(place), int(number))
    if os.environ.get(PATIENT_VARIABLE):
        assert Delivery.__init__.__kwdefaults__ is not None
        Delivery.__init__.__kwdefaults__["slow_s"] = 3600.0
    main()
