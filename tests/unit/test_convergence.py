"""Views come out equal on every node, whatever the order in which batches arrived (design.md 3.9)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.history import History, device
from support.log_world import open_log
from walytis_vault.adapters.storage.view_store import TemporaryViewStore
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.projections.base import Local
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import OWN


def _hashes(
    folder: Path, network: MemoryNetwork, name: str, history: History, order: Sequence[bytes]
) -> dict[str, str]:
    """Let the batches arrive in this order, a few at a time, with views that follow; return the views' hashes."""
    replica = network.replica(name)
    genesis = replica.leaves()
    log = open_log(folder / name, replica, device("m0"), history.root)  # type: ignore[arg-type]
    store = TemporaryViewStore()
    local = Local(history=log.recorder.history)
    host = ProjectionHost(log.recorder, log.index, store, OWN, local=local, epoch=log.index.epoch)
    log.ledger.on_voided(host.reset_all)
    host.start()
    chunk = random.Random(name).randrange(1, 9)
    for start in range(0, len(order), chunk):
        for batch_id in order[start : start + chunk]:
            network.inject(history.batches[batch_id].envelope(), to=[name], parents=genesis)
        log.reconciler.catch_up()
        host.wait(log.index.horizon, timeout=20)
    host.close()
    # A rebuild after voided events may have been under way: the next start goes on where it was.
    host = ProjectionHost(log.recorder, log.index, store, OWN, local=local, epoch=log.index.epoch)
    host.catch_up()
    hashes = {view: state.hash for view, state in host.status().items()}
    host.rebuild()
    assert hashes == {view: state.hash for view, state in host.status().items()}
    host.close()
    store.close()
    log.close()
    return hashes


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(s, marks=pytest.mark.long) for s in range(4, 60))])
def test_any_two_orders_of_arrival_give_equal_views(tmp_path: Path, seed: int) -> None:
    """Members publish, revise, hide, vote, come and go; every node's views have the same hash in the end."""
    network = MemoryNetwork(seed, manual=True)
    history = History(network.chain_id, seed, 60, contents=True)
    ids = list(history.batches)
    first = _hashes(tmp_path, network, "first", history, ids)
    for number in range(2):
        shuffled = random.Random(f"{seed} {number}").sample(ids, len(ids))
        assert _hashes(tmp_path, network, f"r{number}", history, shuffled) == first
