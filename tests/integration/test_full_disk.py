"""A disk that is really full: a small tmpfs in a mount namespace of its own, with a real node on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
PROMISES = [
    "large ones refused",
    "small ones refused",
    "another program took the rest",
    "reads work",
    "forgetting works",
    "a restart works",
    "forgetting all large ones works",
    "publishing works again",
]


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
"""A user namespace of its own lets anybody mount; the mount goes with the process."""
NEEDED = (
    "this test mounts a small disk, for which the machine must let its users make namespaces: it needs util-linux's"
    " `unshare`, and a kernel that allows it (sysctl user.max_user_namespaces > 0, and on some systems"
    " kernel.apparmor_restrict_unprivileged_userns=0)"
)


def on_a_small_disk(folder: Path, script: str, *words: str) -> list[str]:
    """The lines that a script prints which mounts a small disk in `folder`."""
    assert shutil.which("unshare"), NEEDED
    probe = [*NAMESPACE, "mount", "-t", "tmpfs", "none", str(folder)]
    allowed = subprocess.run(probe, capture_output=True, text=True, timeout=30, check=False)
    assert allowed.returncode == 0, f"{NEEDED}: {allowed.stderr}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TMPDIR": str(folder)}
    command = [*NAMESPACE, sys.executable, str(SUPPORT / script), str(folder), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout.splitlines()


@pytest.mark.long
def test_a_vault_on_a_full_disk(tmp_path: Path) -> None:
    """Publishing is refused with our error, reading and forgetting work, the node starts, and room comes back."""
    said = on_a_small_disk(tmp_path, "small_disk.py", "40")
    assert [p for p in PROMISES if not any(line.startswith(p) for line in said)] == []


@pytest.mark.long
def test_views_on_a_full_disk(tmp_path: Path) -> None:
    """Those who wait are told, status says so, and the views go on by themselves when there is room again."""
    said = on_a_small_disk(tmp_path, "full_views.py")
    assert [line.partition(":")[0] for line in said] == ["those who wait hear it", "status says it", "the views go on"]
