"""A real node with its views in a real PostgreSQL: served, killed, forgotten in, refused."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

import pytest

from support.canaries import find_canaries
from support.command_line import refused, run, serving
from support.postgres_server import PostgresServer
from walytis_vault import Client, ForgottenError, Node, StorageError, VaultError, node
from walytis_vault.node import create_vault

pytestmark = pytest.mark.postgres


@pytest.fixture
def plan_crash(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nodes started by the test run the process that can crash."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.setattr(node, "CHILD_MODULE", "support.faulty_process")
    return monkeypatch


def hashes(client: Client) -> dict[str, str]:
    """The hash of every view, with all that was recorded."""
    client.wait_for(client.status().position)
    return {name: view.hash for name, view in client.status().views.items()}


@pytest.mark.long
def test_forgotten_content_is_not_in_the_databases_files(tmp_path: Path, postgres: PostgresServer) -> None:
    """No name and no plaintext is ever in the server's folder; what is left there opens under no key that is left.

    The scan is shown to work on what does lie there: a row in clear, and the sealed descriptor.
    """
    home, secret, name, label = tmp_path / "home", secrets.token_bytes(32), secrets.token_hex(16), secrets.token_hex(16)
    marker = secrets.token_hex(16)
    with Node.create(home, views=postgres.url()), Client(home) as client:
        content_id = client.publish(secret * 40, name=name, labels=[label]).content_id
        (row,) = client.query("catalogue", text=name)
        assert row.name == name
        client.wait_for(client.status().position)
        (schema,) = (r[0] for r in postgres.run("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'vault_%'"))
        ((sealed,),) = postgres.run(f"SELECT sealed FROM {schema}.catalogue_1_sealed")
        assert isinstance(sealed, bytes)
        postgres.run("CREATE TABLE clear (t text)", f"INSERT INTO clear VALUES ('{marker}')", "CHECKPOINT")
        canaries = {"content": secret, "name": name.encode(), "label": label.encode()}
        control = {"marker": marker.encode(), "sealed": sealed[8:40]}
        found = {hit.canary for hit in find_canaries(postgres.data, {**canaries, **control})}
        assert found == {"marker", "sealed"}
        client.forget(content_id)
        with pytest.raises(ForgottenError):
            client.request(content_id)
        (row,) = client.query("catalogue")
        assert (row.state, row.name, row.labels) == ("forgotten", None, None)
        assert client.query("catalogue", text=name) == []
        assert postgres.run(f"SELECT count(*) FROM {schema}.catalogue_1_sealed") == [(0,)]
        postgres.run("CHECKPOINT")
        # Dead rows and the server's log may still hold the sealed bytes; the key that opened them is gone.
        assert {hit.canary for hit in find_canaries(postgres.data, {**canaries, **control})} >= {"marker"}
        assert find_canaries(postgres.data, canaries) == []
    assert find_canaries(home, canaries) == []


@pytest.mark.long
def test_views_move_between_the_places(tmp_path: Path, postgres: PostgresServer) -> None:
    """Made with SQLite, moved to PostgreSQL and back: the same rows and hashes, remembered without the password."""
    home = tmp_path / "home"
    postgres.run("CREATE ROLE limited LOGIN PASSWORD 'sekret'", "CREATE DATABASE theirs OWNER limited")
    with_password = postgres.url("theirs", user="limited", password="sekret")
    with Node.create(home), Client(home) as client:
        for number in range(5):
            client.publish(b"%d" % number, name=f"letter {number}")
        rows, before = client.query("catalogue"), hashes(client)
    with Node.open(home, views=with_password), Client(home) as client:
        assert hashes(client) == before
        assert client.query("catalogue") == rows
        assert "limited@" in client.status().details["views_in"]
        assert client.replay()["catalogue"]["equal"]
        assert not (home / "views.sqlite").exists()
    assert find_canaries(home, {"password": with_password.encode()}) == []
    assert "sekret" not in (home / "vault.json").read_text() + (home / "node.log").read_text()
    with pytest.raises(StorageError, match="password"):
        Node.open(home)
    with Node.open(home, views="sqlite"), Client(home) as client:
        assert hashes(client) == before
        assert client.status().details["views_in"] == "sqlite"


def test_a_url_that_cannot_work_makes_no_vault(tmp_path: Path, postgres: PostgresServer) -> None:
    """`init --views` says why in one line, and leaves nothing."""
    home = tmp_path / "home"
    for url, said in (
        ("postgresql://owner:sekret@127.0.0.1:1/x", "Connection refused"),
        (postgres.url("no_such"), 'database "no_such" does not exist'),
        ("mysql://x/y", "postgresql://user@host"),
    ):
        told = refused(home, "init", "--views", url)
        assert said in told
        assert "sekret" not in told
        assert not (home / "vault.json").exists()


@pytest.mark.long
def test_the_command_line_chooses_the_place(tmp_path: Path, postgres: PostgresServer) -> None:
    """`init --views URL` makes such a vault, `serve --views` moves it."""
    home = tmp_path / "home"
    run(home, "init", "--views", postgres.url())
    with serving(home), Client(home) as client:
        assert client.status().details["views_in"] == postgres.url()
    assert "Connection refused" in refused(home, "serve", "--views", "postgresql://owner:sekret@127.0.0.1:1/x")
    with serving(home, "--views", "sqlite"), Client(home) as client:
        assert client.status().details["views_in"] == "sqlite"


@pytest.mark.long
@pytest.mark.parametrize(
    ("point", "passes"),
    [
        ("projections.before_commit", 3),
        ("projections.after_commit", 3),
        ("projections.rebuild", 1),
        ("projections.swap", 1),
        ("projections.clear", 1),
    ],
)
def test_a_node_killed_while_it_writes_views(
    tmp_path: Path, postgres: PostgresServer, plan_crash: pytest.MonkeyPatch, point: str, passes: int
) -> None:
    """SIGKILL in a fold or a rebuild: after the restart the views are what SQLite makes of the same log."""
    home = tmp_path / "home"
    create_vault(home, network="loopback", views=postgres.url())
    plan_crash.setenv("VAULT_TEST_FAULT", f"{point}:{passes}")
    with Node.open(home) as running, Client(home, timeout=30.0) as client:
        with contextlib.suppress(VaultError):
            for number in range(8):
                client.publish(b"%d" % number, name=f"letter {number}")
            client.forget(client.query("catalogue")[0].content_id)
            client.replay(timeout=60)
        assert not running.running
    plan_crash.delenv("VAULT_TEST_FAULT")
    with Node.open(home), Client(home) as client:
        after, rows = hashes(client), client.query("catalogue", limit=None)
        assert all(built["equal"] for built in client.replay(timeout=300).values())
        ((schema,),) = postgres.run(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'vault_%' ORDER BY oid DESC LIMIT 1"
        )
        tables = f"SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}' AND tablename LIKE 'timeline_%_rows'"
        assert postgres.run(tables) == [(1,)]
    with Node.open(home, views="sqlite"), Client(home) as client:
        assert hashes(client) == after
        assert client.query("catalogue", limit=None) == rows


@pytest.mark.long
def test_a_node_outlives_its_server(tmp_path: Path, postgres: PostgresServer) -> None:
    """While the server is gone the node publishes, gives and forgets; questions get a typed error; then all is back."""
    home = tmp_path / "home"
    with Node.create(home, views=postgres.url()) as running, Client(home) as client:
        kept = client.publish(b"before", name="before").content_id
        gone = client.publish(b"to forget", name="to forget").content_id
        assert len(client.query("catalogue")) == 2
        postgres.stop(crash=True)
        try:
            with pytest.raises(StorageError, match="server"):
                client.query("catalogue")
            during = client.publish(b"meanwhile", name="meanwhile").content_id
            assert client.request(kept) == b"before"
            assert client.request(during) == b"meanwhile"
            with contextlib.suppress(VaultError):
                client.forget(gone)
            assert any("server" in error for error in client.status().details["errors"].values())
        finally:
            postgres.start()
        for _ in range(20):
            with contextlib.suppress(StorageError):
                found = {row.name for row in client.query("catalogue", state="available")}
                if found == {"before", "meanwhile"}:
                    break
        assert found == {"before", "meanwhile"}
        with pytest.raises(ForgottenError):
            client.request(gone)
        assert running.running
        before = hashes(client)
    with Node.open(home, views="sqlite"), Client(home) as client:
        assert hashes(client) == before
