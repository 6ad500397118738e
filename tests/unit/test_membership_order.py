"""Membership settles alike for every order of arrival: exhaustively for small histories, sampled for large ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from support.history import History, device
from support.log_world import open_log
from walytis_vault.adapters.walytis.lineage import Lineage
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.domain.ids import KeyId


def _extensions(history: History, ids: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Every order of the batches in which causes come first."""

    def go_on(done: list[bytes]) -> Iterator[list[bytes]]:
        left = [i for i in ids if i not in done]
        if not left:
            yield done
        for batch_id in left:
            if all(parent in done for parent in history.batches[batch_id].body.parents()):
                yield from go_on([*done, batch_id])

    return go_on([])


def _outcome(
    folder: Path, network: MemoryNetwork, name: str, history: History, order: Sequence[bytes]
) -> tuple[object, list[bytes]]:
    """Let the batches arrive in this order at a fresh replica.

    Returns:
        Everything that must not depend on it, and the batches in the order in which they were recorded.
    """
    replica = network.replica(name)
    genesis = replica.leaves()
    log = open_log(folder / name, replica, device("m0"), history.root)  # type: ignore[arg-type]
    for batch_id in order:
        network.inject(history.batches[batch_id].envelope(), to=[name], parents=genesis)
        log.reconciler.catch_up()
    with log.index.database.read() as connection:
        recorded = [bytes(row[0]) for row in connection.execute("SELECT batch_id FROM batches ORDER BY seq")]
        rows = sorted(connection.execute("SELECT batch_id, void, depth, author FROM batches").fetchall())
        membership = log.membership()
        leads = Lineage(log.index, connection).leads
        for key_id, did, batch_id, void in connection.execute("SELECT key_id, device, batch_id, void FROM batches"):
            assert bool(void) == membership.is_void(KeyId(key_id), did, batch_id, leads), "as if all were judged anew"
    visible = sorted((e.event.origin.order, e.event.data) for e in log.recorder.read())  # type: ignore[attr-defined]
    log.close()
    outcome = rows, membership.members, sorted(membership.keys), membership.superseded, membership.cuts, visible
    return outcome, recorded


@pytest.mark.parametrize("seed", [0, 1, 6, *(pytest.param(s, marks=pytest.mark.long) for s in range(7, 30))])
def test_every_order_of_a_small_history_gives_one_verdict(tmp_path: Path, seed: int) -> None:
    """All orders in which causes come first lead to the same members, keys and voids, and each is judged as such."""
    network = MemoryNetwork(seed, manual=True)
    history = History(network.chain_id, seed, 8)
    ids = list(history.batches)
    first, accepted = None, set[tuple[bytes, ...]]()
    for number, order in enumerate(_extensions(history, ids)):
        outcome, recorded = _outcome(tmp_path, network, f"r{number}", history, order)
        assert recorded == [batch_id for batch_id in order if batch_id in recorded]
        accepted.add(tuple(recorded))
        first = first or outcome
        assert outcome == first
    assert len(accepted) > 1


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(s, marks=pytest.mark.long) for s in range(6, 120))])
def test_shuffled_orders_of_a_large_history_give_one_verdict(tmp_path: Path, seed: int) -> None:
    """Random orders of a history with admissions, key changes and mutual removals settle alike."""
    network = MemoryNetwork(seed, manual=True)
    history = History(network.chain_id, seed + 1000, 40)
    ids = list(history.batches)
    first, _ = _outcome(tmp_path, network, "first", history, ids)
    for number in range(3):
        shuffled = random.Random(number).sample(ids, len(ids))
        assert _outcome(tmp_path, network, f"r{number}", history, shuffled)[0] == first
