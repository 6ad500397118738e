"""The views agree with the pure folds, in every order of arrival, in any batches, and after a rebuild."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.memory_log import MemoryLog
from support.view_world import Vault, at, content, founded, hosting, proposed, published, random_history
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Contents
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.host import ProjectionHost

MANY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL = {"state": "all"}


def rows(host: ProjectionHost, view: str, **filters: Any) -> list[Any]:
    return list(host.query(view, limit=None, filters=filters).rows)


def hashes(host: ProjectionHost) -> dict[str, str]:
    return {name: state.hash for name, state in host.status().items()}


@MANY
@given(seed=st.integers(0, 2**32), shuffle=st.integers(0, 2**32), batch=st.sampled_from([1, 3, 500]))
def test_every_order_of_arrival_gives_equal_hashes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shuffle: int, batch: int
) -> None:
    """Two nodes that heard the same events in different orders have byte-equal views."""
    history = random_history(seed, 50)
    log, other = MemoryLog(), MemoryLog()
    log.add(history)
    random.Random(shuffle).shuffle(history)
    with hosting(tmp_path_factory.mktemp("a"), log) as first:
        first.catch_up()
        with hosting(tmp_path_factory.mktemp("b"), other, batch=batch) as second:
            for number, event in enumerate(history):
                other.add([event])
                if number % 17 == 0:
                    second.catch_up()
                    second.status()  # hashes in between must not disturb later ones
            second.catch_up()
            assert not any(s.parked for s in second.status().values())
            assert hashes(second) == hashes(first)


@MANY
@given(seed=st.integers(0, 2**32))
def test_the_views_say_what_the_pure_folds_say(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Incremental tables and the reference fold come to the same contents and ballots."""
    history = random_history(seed, 60)
    reference, log = Contents(), MemoryLog()
    log.add(history)
    for event in history:
        reference.apply(event)
    with hosting(tmp_path_factory.mktemp("a"), log, batch=7) as host:
        host.catch_up()
        catalogue = host.live("catalogue").view
        assert isinstance(catalogue, Catalogue)
        with catalogue.view.store.read() as connection:
            for content_id, verdict in reference.verdicts().items():
                stored = catalogue.load(connection, content_id)
                assert stored is not None
                assert stored.publication() == reference.publications[content_id]
                assert stored.contested == (content_id in reference.contested)
                found = (stored.original, stored.retracted, stored.expires_ms, stored.head, stored.conflict)
                wanted = (verdict.original, verdict.retracted, verdict.expires_ms, verdict.head, verdict.conflict)
                assert found == wanted
                assert ("none", "open", "carried")[stored.forgetting] == verdict.forgetting
        assert len(rows(host, "catalogue", **ALL)) == len(reference.publications)
        ballots = {r.ballot_id: r for r in rows(host, "ballots")}
        assert set(ballots) == {b.ballot_id.hex() for b in reference.ballots.all()}
        for ballot in reference.ballots.all():
            row = ballots[ballot.ballot_id.hex()]
            assert (row.state, row.consents, row.receipts) == (ballot.state, ballot.consents, ballot.receipts)
        assert len(rows(host, "timeline")) == len(history)
        members = {r.did for r in rows(host, "members", state="member")}
        assert members == set(reference.ballots.members())


@MANY
@given(seed=st.integers(0, 2**32))
def test_a_rebuild_changes_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Rows, hashes and changes are the same after a rebuild."""
    log = MemoryLog()
    log.add(random_history(seed, 40))
    with hosting(tmp_path_factory.mktemp("a"), log, batch=9) as host:
        host.catch_up()
        before = hashes(host), [rows(host, n) for n in host.names], host.changes("catalogue", after=0)
        host.rebuild()
        assert (hashes(host), [rows(host, n) for n in host.names], host.changes("catalogue", after=0)) == before


def test_a_backdated_publication_moves_the_links_of_its_revisions(tmp_path: Path) -> None:
    """When an id turns out to belong to another author, what revised it stands alone, and the name is the other's."""
    log = MemoryLog()
    with hosting(tmp_path, log) as host:
        log.add([at(published(1), "did:a", 5), at(published(2, revises=1), "did:a", 6)])
        host.catch_up()
        log.add([at(published(1, size=77), "did:b", 2)])
        host.catch_up()
        by_id = {r.content_id: r for r in rows(host, "catalogue")}
        first, second = by_id[content(1).hex()], by_id[content(2).hex()]
        assert (first.author, first.padded_size, first.contested, first.revisions) == ("did:b", 77, True, 0)
        assert (second.revises, second.current) == (None, True)


def test_a_doubled_id_waits_for_what_its_earlier_publication_revises(tmp_path: Path) -> None:
    """An author uses an id twice, and only the earlier use revises something: its arrival in any order is the same."""
    first, again = at(published(1), "did:a", 5), at(published(1, revises=2), "did:a", 3)
    original, found = at(published(2), "did:a", 2), []
    for number, order in enumerate(itertools.permutations([first, again, original])):
        log = MemoryLog()
        (tmp_path / str(number)).mkdir()
        with hosting(tmp_path / str(number), log) as host:
            host.catch_up()
            for event in order:
                log.add([event])
                host.catch_up()
            row = rows(host, "catalogue", content_id=content(1).hex())[0]
            found.append((hashes(host)["catalogue"], row.revises, row.current, row.contested))
    assert set(found) == {(found[0][0], content(2).hex(), True, True)}


def test_a_long_chain_of_revisions_stays_quick_to_fold(tmp_path: Path) -> None:
    """Each of 300 revisions supersedes the one before; the original counts them all."""
    log = MemoryLog()
    log.add([at(published(0), "did:a", 1), *(at(published(i, revises=0), "did:a", i + 1) for i in range(1, 301))])
    with hosting(tmp_path, log) as host:
        host.catch_up()
        current = rows(host, "catalogue", current=True)
        assert [r.content_id for r in current] == [content(300).hex()]
        assert rows(host, "catalogue", content_id=content(0).hex())[0].revisions == 300
        assert len(rows(host, "catalogue", revises=content(0).hex())) == 300


def test_the_sealed_descriptor_goes_when_the_ballot_carries(tmp_path: Path) -> None:
    """No sealed bytes and no reason of a forgotten content stay in the tables."""
    log, vault = MemoryLog(), Vault()
    vault.has(1, "secret")
    log.add([at(founded(), "did:a", 1), at(published(1), "did:a", 2)])
    with hosting(tmp_path, log, vault=vault) as host:
        host.catch_up()
        assert rows(host, "catalogue")[0].name == "secret"
        log.add([at(proposed(1, [1], ["did:a"]), "did:a", 3)])
        host.catch_up()
        assert (rows(host, "catalogue")[0].name, rows(host, "ballots")[0].reason) == (None, None)
        view = host.live("catalogue").view
        with view.view.store.read() as connection:
            assert list(connection.execute(f"SELECT * FROM {view.t('sealed')}")) == []


def test_names_are_never_stored(tmp_path: Path) -> None:
    """After searches by name, no opened name is in any file of the view store; sealed bytes are (the control)."""
    log, vault = MemoryLog(), Vault()
    vault.has(1, "canary-name", labels=["canary-label"])
    log.add([at(published(1), "did:a", 2)])
    with hosting(tmp_path, log, vault=vault) as host:
        host.catch_up()
        assert len(rows(host, "catalogue", text="canary")) == 1
        host.changes("catalogue", after=0)
        host.status()
        host.rebuild()
    found = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert b"sealed 1" in found
    assert b"canary" not in found


def test_members_show_devices_and_who_removed_them(tmp_path: Path) -> None:
    """A member's row tells its current keys, and stays after its removal."""
    from support.view_world import admitted, keys_of

    log = MemoryLog()
    log.add(
        [
            at(founded(), "did:a", 1),
            at(ev.KeyAnnounced(keys=keys_of("did:a")), "did:a", 1, salt=1),
            at(admitted("did:b"), "did:a", 2),
            at(ev.MemberRemoved(member="did:b", accepted=()), "did:a", 3),
        ]
    )
    with hosting(tmp_path, log) as host:
        host.catch_up()
        first, second = rows(host, "members")
        assert (first.did, first.founder, first.state, [d.device for d in first.devices]) == (
            "did:a",
            True,
            "member",
            ["did:a/1"],
        )
        assert (second.did, second.admitted_by, second.state, second.removed_by) == (
            "did:b",
            "did:a",
            "removed",
            "did:a",
        )
        assert rows(host, "members", state="member") == [first]


def test_holders_tell_who_published_and_who_erased(tmp_path: Path) -> None:
    """Every signed receipt is a row; what this node has is asked when the query runs."""
    log, vault = MemoryLog(), Vault()
    vault.has(1, "x")
    log.add(
        [
            at(published(1), "did:a", 2),
            at(ev.ContentErased(contents=(content(1),)), "did:b", 3),
            at(published(2), "did:a", 4),
        ]
    )
    with hosting(tmp_path, log, vault=vault) as host:
        host.catch_up()
        found = {r.device: (r.state, r.here) for r in rows(host, "holders", content_id=content(1).hex())}
        assert found == {"did:a/1": ("published", True), "did:b/1": ("erased", True)}
        assert [r.member for r in rows(host, "holders", state="erased")] == ["did:b"]
        assert {r.held_by for r in rows(host, "holders")} == {None}
        before = host.status()["holders"].hash
        vault.elsewhere = {content(2): ("did:c/1",)}
        held = {(r.content_id, r.device): r.held_by for r in rows(host, "holders")}
        assert sorted(held.items()) == sorted(
            {(content(1).hex(), f"did:{who}/1"): () for who in "ab"}.items()
            | {(content(2).hex(), "did:a/1"): ("did:c/1",)}.items()
        )
        assert [sorted(q) for q in vault.questions] == [sorted([content(1), content(2)])], "each once for a page"
        assert host.status()["holders"].hash == before
        (then,) = host.query_as_of("holders", 1).rows
        assert msgspec.to_builtins(then)["held_by"] is None, "nobody knows the past"
        pages = [host.query("holders", limit=1)]
        while pages[-1].cursor:
            pages.append(host.query("holders", limit=1, cursor=pages[-1].cursor))
        assert [p.rows[0] for p in pages] == rows(host, "holders")
