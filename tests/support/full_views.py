"""Views on a disk that is really full, then has room again: run inside a mount namespace by `test_full_disk.py`.

Prints one line for each thing that held. Usage: full_views.py FOLDER, FOLDER being where a tmpfs may be mounted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.memory_log import MemoryLog
from support.view_world import at, hosting, published
from walytis_vault.domain.errors import StorageFullError

EVENTS = 2000


def main(folder: Path) -> None:
    """Fold until the disk is full, make room, and see the views go on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=True)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(6_500_000))
    log = MemoryLog()
    with hosting(folder, log) as host:
        host.start()
        position = log.add([at(published(n), f"did:{n % 5}", n + 2) for n in range(EVENTS)])
        try:
            host.wait(position, timeout=60)
        except StorageFullError as e:
            print("those who wait hear it:", e, flush=True)
        assert all("no space left" in (state.error or "") for state in host.status().values())
        assert set(host.errors()) == set(host.folded)
        print("status says it", flush=True)
        ballast.unlink()
        assert host.wait(position, timeout=60) == position
        assert len(host.query("catalogue", limit=None).rows) == EVENTS
        assert host.errors() == {}
        print("the views go on", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
