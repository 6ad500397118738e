"""This node's own copy on a real node: lock and unlock, change of passphrase, drop and fetch again."""

from __future__ import annotations

import datetime as dt
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.canaries import find_canaries
from support.command_line import as_json, publish, refused, run
from support.planned_process import Planned
from walytis_vault import (
    Client,
    ConflictError,
    ForgottenError,
    LockedError,
    MisuseError,
    Node,
    NotYetAvailableError,
    WrongPassphraseError,
)

FIRST = "correct horse"


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A vault under a passphrase, for all tests of this module; each leaves it unlocked under FIRST."""
    with Node.create(tmp_path_factory.mktemp("vault") / "home", passphrase=FIRST) as node:
        yield node


@pytest.fixture
def client(vault: Node) -> Iterator[Client]:
    """A client of it."""
    with Client(vault.home) as opened:
        yield opened


def test_a_locked_node_tells_nothing(vault: Node, client: Client, tmp_path: Path) -> None:
    """Locked: no content, no name, no publish, streams cut off; ids, ballots and forgetting work; then it opens."""
    secret, name = secrets.token_bytes(32), secrets.token_bytes(16).hex()
    kept = client.publish(secret * 10, name=name, labels=("mine",)).content_id
    victim = client.publish(secret * 20, name=name).content_id
    large = tmp_path / "large"
    large.write_bytes(os.urandom(24 << 20))
    streamed = client.publish(large).content_id
    assert len(client.query("catalogue", name=name)) == 2
    watching = client.subscribe("catalogue", after=client.status().position)

    def lock_meanwhile(done: int, _total: int | None) -> None:
        if not client.status().locked:
            client.lock()
            client.lock()

    with pytest.raises(LockedError):
        client.request(streamed, to=tmp_path / "never", progress=lock_meanwhile)
    assert [p.name for p in tmp_path.iterdir()] == ["large"]
    for attempt in (
        lambda: client.request(kept),
        lambda: client.publish(b"new"),
        lambda: client.publish(large),
        lambda: client.query("catalogue"),
        lambda: client.query("catalogue", name=name),
        lambda: client.query("catalogue", text=name),
        lambda: client.forget(victim, reason="sealed under its key"),
        client.invite,
    ):
        with pytest.raises(LockedError, match="unlock"):
            attempt()
    assert {row.content_id for row in client.query("holders")} >= {kept, victim, streamed}
    assert client.forget(victim).state == "carried"
    assert client.query("ballots")[0].state == "carried"
    assert client.audit(read_data=True)["ok"]
    client.retract(kept)
    with pytest.raises(LockedError):
        list(watching)
    assert find_canaries(vault.home, {"content": secret, "name": name.encode()}) == []
    with pytest.raises(WrongPassphraseError, match="wrong passphrase"):
        client.unlock("not it")
    assert client.status().locked
    client.unlock(FIRST)
    assert not client.status().locked
    client.restore(kept)
    assert client.request(kept) == secret * 10
    with pytest.raises(ForgottenError):
        client.request(victim)
    assert [row.content_id for row in client.query("catalogue", name=name)] == [kept]
    assert [row.name for row in client.query("catalogue", content_id=kept)] == [name]
    assert client.request(streamed) == large.read_bytes()


def test_a_locked_node_forgets_what_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expiry needs no key: a content goes at its time although the vault is locked."""
    planned = Planned(monkeypatch, tmp_path)
    with Node.create(tmp_path / "home", passphrase=FIRST) as _, Client(tmp_path / "home") as client:
        content_id = client.publish(b"short-lived", expires=dt.timedelta(hours=1)).content_id
        other = client.publish(b"hidden while locked").content_id
        client.lock()
        planned.set_ahead(dt.timedelta(hours=2))
        client.retract(other)  # whatever is new makes the node look at the clock
        for change in client.subscribe("events"):
            if change.type == "content-erased/1" and content_id in change.ids:
                break
        client.unlock(FIRST)
        with pytest.raises(ForgottenError):
            client.request(content_id)


def test_the_passphrase_changes_while_the_node_runs(vault: Node, client: Client) -> None:
    """The old one is told wrong from then on, the new one opens; contents are as they were; also while locked."""
    content_id = client.publish(b"stays as it is").content_id
    files = {p: p.read_bytes() for p in (vault.home / "store").rglob("*") if p.suffix in (".pack", ".slots")}
    with pytest.raises(WrongPassphraseError):
        client.change_passphrase("not it", "new")
    with pytest.raises(MisuseError):
        client.change_passphrase(None, "new")
    client.change_passphrase(FIRST, "new")
    client.lock()
    with pytest.raises(WrongPassphraseError):
        client.unlock(FIRST)
    client.change_passphrase("new", FIRST)
    assert client.status().locked
    client.unlock(FIRST)
    assert client.request(content_id) == b"stays as it is"
    assert all(path.read_bytes() == data for path, data in files.items())


def test_dropped_bytes_are_not_lost_by_accident(client: Client) -> None:
    """Where nobody else holds a content only force drops it; it stays listed, and can still be forgotten."""
    content_id = client.publish(b"only here" * 1000, name="only here").content_id
    with pytest.raises(ConflictError, match="force"):
        client.drop(content_id)
    assert client.request(content_id) == b"only here" * 1000
    done = client.drop(content_id, force=True)
    assert done.contents == (content_id,)
    assert done.freed > 9000
    assert client.drop(content_id, force=True).freed == 0
    with pytest.raises(NotYetAvailableError):
        client.request(content_id)
    (row,) = client.query("catalogue", content_id=content_id)
    assert (row.state, row.name) == ("pending", "only here")
    assert client.forget(content_id).state == "carried"
    with pytest.raises(ForgottenError):
        client.drop(content_id, force=True)


def test_the_command_line(vault: Node, tmp_path: Path) -> None:
    """lock, unlock, drop and passphrase from the command line, with files for the passphrases."""
    home = vault.home
    right, wrong, new = tmp_path / "right", tmp_path / "wrong", tmp_path / "new"
    right.write_text(f"{FIRST}\n")
    wrong.write_text("not it\n")
    new.write_text("another\n")
    content_id = publish(home, b"x" * 500)
    assert as_json(home, "lock") == {"locked": True}
    assert "unlock it first" in refused(home, "get", content_id)
    assert as_json(home, "status")["locked"]
    assert "wrong passphrase" in refused(home, "unlock", "--passphrase-file", str(wrong))
    assert "--passphrase-file" in refused(home, "unlock")
    assert as_json(home, "unlock", "--passphrase-file", str(right)) == {"locked": False}
    files = ("--passphrase-file", str(right), "--new-passphrase-file", str(new))
    assert as_json(home, "passphrase", *files) == {"kind": "passphrase"}
    run(home, "passphrase", "--passphrase-file", str(new), "--new-passphrase-file", str(right))
    assert "force" in refused(home, "drop", content_id)
    assert as_json(home, "drop", "--force", content_id)["contents"] == [content_id]


def test_a_vault_with_a_key_file(tmp_path: Path) -> None:
    """It cannot be locked, but gets a passphrase, with or without a node, and goes back to a key file."""
    home, word, other = tmp_path / "home", tmp_path / "word", tmp_path / "other"
    word.write_text("word\n")
    other.write_text("other\n")
    with Node.create(home) as node, Client(home) as client:
        content_id = client.publish(b"kept").content_id
        with pytest.raises(MisuseError, match="key file"):
            client.lock()
        client.change_passphrase(None, "word")
        client.lock()
        client.unlock("word")
        assert not (node.home / "keys" / "vault.key").exists()
    assert "wrong passphrase" in refused(home, "passphrase", "--passphrase-file", str(other), "--to-key-file")
    run(home, "passphrase", "--passphrase-file", str(word), "--new-passphrase-file", str(other))
    run(home, "passphrase", "--passphrase-file", str(other), "--to-key-file")
    with Node.open(home), Client(home) as client:
        assert client.request(content_id) == b"kept"
