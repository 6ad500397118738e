"""What decisions read of the log: as much as they need, whatever else is there, and as much as there may be."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.log_world import Device, founded, open_log, proposal, publication
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import decide_retract, decide_revise
from walytis_vault.domain.limits import LIMITS
from walytis_vault.reading import read_families, read_state

FAMILY = 1100
"""Revisions of one content: more than SQLite takes expressions side by side."""


class Vault:
    """The log of one member, without contents: only what is said about them."""

    def __init__(self, folder: Path) -> None:
        chain = MemoryNetwork(1).replica("a")
        self.me = Device("a")
        self.id = chain.chain_id
        self.log: VaultLog = open_log(folder, chain, self.me, founded(chain, self.me))
        self.log.start()

    def say(self, *events: ev.Event) -> None:
        """Append, in one batch."""
        self.log.recorder.append(ev.to_dcb_all(events))

    def new(self, revises: bytes | None = None) -> ev.ContentPublished:
        """A publication of ours that is not on the log yet."""
        return publication(self.id, self.me.member, nonce=secrets.token_bytes(16), revises=revises)

    def ask(self, *contents: bytes) -> ev.ForgettingProposed:
        """A proposal that carries at once."""
        return proposal(self.id, self.me.member, sorted(contents), [self.me.member])


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    made = Vault(tmp_path)
    yield made
    made.log.close()


def rows_read(vault: Vault, contents: Sequence[bytes], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many rows of the index a decision about these contents reads."""
    rows = 0
    read = vault.log.index.read

    def counted(*args: Any) -> Any:
        nonlocal rows
        found = read(*args)
        rows += len(found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(vault.log.index, "read", counted)
        read_state(vault.log.recorder, contents)
    return rows


def test_a_decision_reads_as_much_however_often_a_content_was_revised(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that a request or a revision needs are counted after one revision and after 200: as many."""
    original = vault.new()
    vault.say(original, ev.ContentRetracted(content_id=original.content_id))
    revisions = [vault.new(original.content_id) for _ in range(200)]
    vault.say(revisions[0])
    few = [rows_read(vault, [c.content_id], monkeypatch) for c in (original, revisions[0])]
    vault.say(*revisions[1:])
    many = [rows_read(vault, [c.content_id], monkeypatch) for c in (original, revisions[0], revisions[-1])]
    assert many == [*few, few[1]]
    assert max(many) <= 5


def test_a_content_may_have_more_revisions_than_a_query_has_room_for(vault: Vault) -> None:
    """It can be asked for, revised, and forgotten with all of them."""
    original = vault.new()
    revisions = [vault.new(original.content_id) for _ in range(FAMILY)]
    vault.say(original, *revisions)
    everything = {c.content_id for c in (original, *revisions)}
    for content in (original, revisions[0], revisions[-1]):
        state = read_state(vault.log.recorder, [content.content_id]).state
        assert decide_revise(state, content.content_id, by=vault.me.member) == original.content_id
    asked = vault.ask(original.content_id)
    vault.say(asked)
    verdicts = read_families(vault.log.recorder, ballots=[asked.ballot_id]).state.verdicts()
    assert {c for c, verdict in verdicts.items() if verdict.forgetting == "carried"} == everything
    for content in (original, revisions[-1]):
        assert read_state(vault.log.recorder, [content.content_id]).state.verdicts()[content.content_id].forgetting == (
            "carried"
        )


def test_a_ballot_of_as_many_contents_as_it_may_name_is_decided(vault: Vault) -> None:
    """The largest ballot is read, with the condition under which something is appended to what it names."""
    contents = [vault.new() for _ in range(LIMITS.ballot_contents)]
    vault.say(*contents)
    reading = read_state(vault.log.recorder, [c.content_id for c in contents])
    asked = vault.ask(*(c.content_id for c in contents))
    vault.log.recorder.append_once([ev.to_dcb(asked)], reading.condition, receipt=None)
    carried = read_families(vault.log.recorder, ballots=[asked.ballot_id]).state.verdicts()
    assert {v.forgetting for v in carried.values()} == {"carried"}
    assert len(carried) == LIMITS.ballot_contents


def test_what_is_hidden_or_forgotten_above_holds_below(vault: Vault) -> None:
    """A revision of a revision is judged by all that it revises, though none of its siblings is read."""
    original = vault.new()
    child = vault.new(original.content_id)
    grandchild = vault.new(child.content_id)
    vault.say(original)
    vault.say(child)
    vault.say(grandchild)

    def judged() -> Any:
        return read_state(vault.log.recorder, [grandchild.content_id]).state

    assert judged().verdict(grandchild.content_id).original == original.content_id
    vault.say(ev.ContentRetracted(content_id=original.content_id))
    assert judged().verdict(grandchild.content_id).retracted
    assert not decide_retract(judged(), grandchild.content_id, by=vault.me.member)
    vault.say(vault.ask(child.content_id))
    assert judged().verdict(grandchild.content_id).forgetting == "carried"
    assert read_state(vault.log.recorder, [original.content_id]).state.verdict(original.content_id).forgetting == "none"


def _tags(index: LogIndex) -> tuple[Collection[Any], Collection[Any]]:
    with index.database.read() as connection:
        return (
            connection.execute("SELECT tag, position FROM tags ORDER BY 1, 2").fetchall(),
            connection.execute("SELECT position, tags FROM events ORDER BY 1").fetchall(),
        )


def test_an_index_of_an_earlier_version_finds_the_same(tmp_path: Path) -> None:
    """Where a revision still shares the tag of its original, the next start gives it its own; once."""
    vault = Vault(tmp_path)
    original = vault.new()
    vault.say(original, *(vault.new(original.content_id) for _ in range(3)))
    vault.say(ev.ContentRetracted(content_id=original.content_id))
    wanted = _tags(vault.log.index)
    vault.log.close()
    database = Database(tmp_path / "log.sqlite")
    link, shared = ev.revision_tag(original.content_id), ev.content_tag(original.content_id)
    with database.transaction() as connection:
        connection.execute("UPDATE tags SET tag = ? WHERE tag = ?", (shared, link))
        rows: list[Any] = connection.execute("SELECT position, tags FROM events").fetchall()
        for position, packed in rows:
            tags = [shared if tag == link else tag for tag in msgspec.msgpack.decode(packed)]
            connection.execute(
                "UPDATE events SET tags = ? WHERE position = ?", (msgspec.msgpack.encode(tags), position)
            )
        connection.execute("PRAGMA user_version = 1")
    assert _tags(LogIndex(database)) == wanted
    assert _tags(LogIndex(database)) == wanted
    database.close()
