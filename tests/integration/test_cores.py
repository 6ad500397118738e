"""The embedded IPFS node is sized for half of the cores, and nothing stays tied to some of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import ENVIRONMENT

PROGRAM = """
import os, sys, time
from pathlib import Path
from walytis_vault.adapters.walytis import quiet, upstream
folder = Path(sys.argv[1])
quiet.hush(folder)
with quiet.without_kubo_log(folder):
    upstream.load_kubo()
print(*{len(os.sched_getaffinity(int(t.name))) for t in Path("/proc/self/task").iterdir()}, flush=True)
sys.stdin.read()
os._exit(0)
"""
pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores")


def loaded(folder: Path, **environment: str) -> tuple[str, set[int]]:
    """Cores that its threads may use, and how many Go uses at once, by Go's own report."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**ENVIRONMENT, **environment, "GODEBUG": "schedtrace=20"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        line = child.stdout.readline()
        reports = [child.stderr.readline() for _ in range(3)]
        child.communicate("", timeout=30)
    return line.strip(), {int(n) for report in reports for n in re.findall(r"gomaxprocs=(\d+)", report)}


def test_it_uses_half_of_the_cores(tmp_path: Path) -> None:
    """Go runs on half of them at once, at least one; each thread may use any of them."""
    cores = len(os.sched_getaffinity(0))
    assert loaded(tmp_path) == (str(cores), {max(1, cores // 2)})


def test_the_environment_may_say_otherwise(tmp_path: Path) -> None:
    """GOMAXPROCS is Go's own setting, and stays the user's."""
    assert loaded(tmp_path, GOMAXPROCS="5") == (str(len(os.sched_getaffinity(0))), {5})
