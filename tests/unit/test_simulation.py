"""Whole vaults from a seed: whatever the network, the crashes and one hostile member do, the promises hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.simulation import Simulation


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(s, marks=pytest.mark.long) for s in range(10, 30))])
def test_a_vault_keeps_its_promises_and_heals(tmp_path: Path, seed: int) -> None:
    """Safety after every step; after healing equal views, memberships and forks, and everything carried is erased."""
    simulation = Simulation(tmp_path, seed)
    try:
        simulation.run(60)
    finally:
        simulation.close()
    assert simulation.outcomes["done"] > 20
