"""The node's process on a disk that fails when told: a number in `FAIL_SYNC` of the home fails that database sync."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from support.faulty_files import FaultPlan, faulty_sqlite
from walytis_vault.process import main

VARIABLE = "VAULT_TEST_FAIL_SYNC"


class Told(FaultPlan):
    """Fails the n-th sync of a database from the moment on when the file appears."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._syncs = 0

    def check(self, call: str, growth: int = 0) -> None:
        """See `FaultPlan`."""
        if call == "sqlite sync" and self._file.exists():
            self._syncs += 1
            if self._syncs == int(self._file.read_text()):
                raise OSError(errno.EIO, os.strerror(errno.EIO))


if __name__ == "__main__":
    with faulty_sqlite(Told(Path(os.environ[VARIABLE]))):
        main()
