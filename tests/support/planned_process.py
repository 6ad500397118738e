"""The node's process with a clock and content keys that the test chose; planned crashes too, as in `faulty_process`.

`VAULT_TEST_CLOCK` names a file with the milliseconds by which the wall clock runs ahead; `VAULT_TEST_KEYS` are the
content keys (hex, with commas) that the node draws first.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from support import faulty_process
from walytis_vault import node
from walytis_vault.adapters import system
from walytis_vault.adapters.crypto.content_cipher import CONTENT_KEY_BYTES
from walytis_vault.process import main

CLOCK_VARIABLE = "VAULT_TEST_CLOCK"
KEYS_VARIABLE = "VAULT_TEST_KEYS"


class Planned:
    """What a test plans for the nodes that it starts from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, *keys: bytes) -> None:
        """Nodes keep their clock's file in `folder`, and draw `keys` as their first content keys."""
        self._clock = folder / "clock"
        self._clock.write_text("0")
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
        monkeypatch.setattr(node, "CHILD_MODULE", "support.planned_process")
        monkeypatch.setenv(CLOCK_VARIABLE, str(self._clock))
        monkeypatch.setenv(KEYS_VARIABLE, ",".join(key.hex() for key in keys))

    def set_ahead(self, time: dt.timedelta) -> None:
        """Let the wall clocks of all of them run ahead by this much from now on. Nobody notices before it looks."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(str(time // dt.timedelta(milliseconds=1)))
        fresh.rename(self._clock)


def plan() -> None:
    """Put the clock and the randomness in place that the environment asks for."""
    keys = [bytes.fromhex(text) for text in os.environ.get(KEYS_VARIABLE, "").split(",") if text]
    clock = os.environ.get(CLOCK_VARIABLE)
    wall_ms, token = system.SystemClock.wall_ms, system.SystemRandomness.token

    def ahead(self: system.SystemClock) -> int:
        return wall_ms(self) + (int(Path(clock).read_text()) if clock else 0)

    def planned(self: system.SystemRandomness, size: int) -> bytes:
        return keys.pop(0) if keys and size == CONTENT_KEY_BYTES else token(self, size)

    patch = pytest.MonkeyPatch()
    patch.setattr(system.SystemClock, "wall_ms", ahead)
    patch.setattr(system.SystemRandomness, "token", planned)


if __name__ == "__main__":
    faulty_process.plan()
    plan()
    main()
