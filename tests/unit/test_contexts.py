"""Numbered causal contexts: the same set has the same number, comes back whole, and costs what it adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis import contexts
from walytis_vault.adapters.walytis.contexts import Contexts


def _id(number: int) -> bytes:
    return number.to_bytes(32, "big")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sets(st.integers(0, 30), max_size=3), st.lists(st.integers(0, 30), max_size=3))))
def test_sets_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[set[int], list[int]]]
) -> None:
    """Whatever they are built on, and whatever is remembered: equal sets, equal numbers, and only those."""
    database = Database(tmp_path_factory.mktemp("contexts") / "db", durable=False)
    kept, numbers = Contexts(), dict[int, frozenset[bytes]]()
    with database.transaction() as connection:
        connection.execute(contexts.SCHEMA)
        for added, choices in steps:
            known = sorted(numbers)
            bases = {known[choice % len(known)] for choice in choices} if known else set()
            wanted = frozenset({_id(n) for n in added}).union(*(numbers[b] for b in bases))
            number = kept.number(connection, wanted, bases)
            assert numbers.setdefault(number, wanted) == wanted
            kept.forget()
        assert len(set(numbers.values())) == len(numbers)
        for number, wanted in numbers.items():
            assert kept.members(connection, number) == wanted
    database.close()


def test_a_long_line_of_contexts_takes_space_in_proportion(tmp_path: Path) -> None:
    """A thousand contexts, each with one batch more than the last, take a thousand ids and not half a million."""
    database, kept = Database(tmp_path / "db", durable=False), Contexts()
    with database.transaction() as connection:
        connection.execute(contexts.SCHEMA)
        ids, last = list[bytes](), kept.number(connection, ())
        for number in range(1000):
            ids.append(_id(number))
            last = kept.number(connection, ids, {last})
        assert kept.members(connection, last) == frozenset(ids)
        kept.forget()
        assert kept.members(connection, last) == frozenset(ids)
        ((size,),) = connection.execute("SELECT sum(length(added)) FROM contexts")
        assert size == 1000 * 32
    database.close()
