"""Membership settles alike for every order of arrival: exhaustively for small histories, sampled for large ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.history import History, device
from support.log_world import open_log
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork


def _outcome(folder: Path, network: MemoryNetwork, name: str, history: History, order: Sequence[bytes]) -> object:
    """Let the batches arrive in this order at a fresh replica; return everything that must not depend on it."""
    replica = network.replica(name)
    genesis = replica.leaves()
    log = open_log(folder / name, replica, device("m0"), history.root)  # type: ignore[arg-type]
    for batch_id in order:
        network.inject(history.batches[batch_id].envelope(), to=[name], parents=genesis)
        log.reconciler.catch_up()
    with log.index.database.read() as connection:
        rows = sorted(connection.execute("SELECT batch_id, void, depth, author FROM batches").fetchall())
    membership = log.membership()
    visible = sorted((e.event.origin.order, e.event.data) for e in log.recorder.read())  # type: ignore[attr-defined]
    log.close()
    return rows, membership.members, sorted(membership.keys), membership.superseded, membership.cuts, visible


@pytest.mark.parametrize("seed", range(3))
def test_every_order_of_a_small_history_gives_one_verdict(tmp_path: Path, seed: int) -> None:
    """All orders of arrival of the last four batches of a history lead to the same members, keys and voids."""
    network = MemoryNetwork(seed, manual=True)
    history = History(network.chain_id, seed, 7)
    ids = list(history.batches)
    first = None
    for number, tail in enumerate(itertools.permutations(ids[3:])):
        outcome = _outcome(tmp_path, network, f"r{number}", history, [*tail, *ids[:3]])
        first = first or outcome
        assert outcome == first


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(s, marks=pytest.mark.long) for s in range(6, 120))])
def test_shuffled_orders_of_a_large_history_give_one_verdict(tmp_path: Path, seed: int) -> None:
    """Random orders of a history with admissions, key changes and mutual removals settle alike."""
    network = MemoryNetwork(seed, manual=True)
    history = History(network.chain_id, seed + 1000, 40)
    ids = list(history.batches)
    first = _outcome(tmp_path, network, "first", history, ids)
    for number in range(3):
        shuffled = random.Random(number).sample(ids, len(ids))
        assert _outcome(tmp_path, network, f"r{number}", history, shuffled) == first
