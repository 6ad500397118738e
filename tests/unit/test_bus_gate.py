"""When the gate shuts, for how long, and what it leaves of the socket's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from walytis_vault.bus.gate import OPEN_S, SHUT_MOST_S, SHUT_S, Gate, shut_name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "node.ipc"
    path.touch()
    return path


def test_as_many_as_may_come_do_not_shut_it(path: Path) -> None:
    """Many at once, and then as many a second as the rate says, for ever."""
    gate = Gate(path, 100, 0.0)
    for _ in range(390):
        gate.came(0.0, refused=False)
    for number in range(1000):
        gate.came(0.01 * number, refused=False)
    assert (gate.shut, gate.times) == (False, 0)
    assert path.exists()


@pytest.mark.parametrize(("refused", "most"), [(True, 26), (False, 401)])
def test_too_many_shut_it_for_a_while(path: Path, refused: bool, most: int) -> None:
    """Refused ones weigh more; the file has its other name then, and its own again after a while."""
    gate, came = Gate(path, 100, 0.0), 0
    while not gate.shut:
        gate.came(0.0, refused=refused)
        came += 1
    assert came == most
    assert not path.exists()
    assert shut_name(path).exists()
    gate.tick(SHUT_S / 2)
    assert gate.shut
    gate.tick(SHUT_S)
    assert not gate.shut
    assert path.exists()
    assert not shut_name(path).exists()


def test_it_stays_open_long_enough_for_those_who_wait(path: Path) -> None:
    """However many come in the first moment after it opened; while they go on, it is shut for longer."""
    gate, now = Gate(path, 100, 0.0), 0.0
    for _ in range(100):
        gate.came(now, refused=True)
    for number in range(1, 5):
        gate.tick(now := now + min(SHUT_MOST_S, SHUT_S * 2 ** (number - 1)))
        for _ in range(100):
            gate.came(now + OPEN_S / 2, refused=True)
        assert not gate.shut
        gate.came(now := now + 2 * OPEN_S, refused=True)
        assert gate.shut
        assert gate.times == number + 1
    gate.tick(now := now + SHUT_MOST_S)
    now += 60.0
    for _ in range(100):
        gate.came(now, refused=True)
    gate.tick(now + SHUT_S)
    assert not gate.shut, "after a calm time it is the first time again"


def test_closing_gives_the_name_back(path: Path) -> None:
    """Also twice, and also when the file is gone."""
    gate = Gate(path, 1, 0.0)
    for _ in range(9):
        gate.came(0.0, refused=False)
    assert gate.shut
    gate.close()
    gate.close()
    assert path.exists()
    gate = Gate(path, 1, 0.0)
    for _ in range(9):
        gate.came(0.0, refused=False)
    shut_name(path).unlink()
    gate.close()
    assert not gate.shut


def test_without_a_file_it_never_shuts() -> None:
    """A port has no second name."""
    gate = Gate(None, 1, 0.0)
    for _ in range(100):
        gate.came(0.0, refused=True)
    assert not gate.shut
