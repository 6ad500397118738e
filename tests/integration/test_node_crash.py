"""What was acknowledged survives SIGKILL, what was not is there wholly or not at all; a real node is killed."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.canaries import find_canaries
from walytis_vault import Client, ForgottenError, Node, VaultError, node
from walytis_vault.node import create_vault

PATIENCE_S = 60.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fresh vault that no node serves."""
    create_vault(tmp_path / "home", network="loopback")
    return tmp_path / "home"


@pytest.fixture
def plan_crash(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nodes started by the test run the process that can crash."""
    tests = str(Path(__file__).parents[1])
    monkeypatch.syspath_prepend(tests)
    monkeypatch.setattr(node, "CHILD_MODULE", "support.faulty_process")
    return monkeypatch


def until_dead(running: Node, home: Path, ask: Callable[[Client], object]) -> None:
    """Ask for what kills the node and wait for its end, however slow the machine; the asking ends with it."""
    with Client(home, timeout=PATIENCE_S) as client:

        def asking() -> None:
            with contextlib.suppress(VaultError):
                ask(client)

        thread = threading.Thread(target=asking, daemon=True)
        thread.start()
        running._child.wait(PATIENCE_S)  # some points come after the reply
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_acknowledged_publishes_survive_sigkill(home: Path) -> None:
    """Everything that `publish` returned for is listed and readable after the node was killed and restarted."""
    contents: dict[str, bytes] = {}
    with Node.open(home) as running, Client(home) as client:
        for number in range(20):
            data = secrets.token_bytes(10 + number * 5000)
            contents[client.publish(data, name=f"content {number}").content_id] = data
        position = client.status().position
        running.kill()
    with Node.open(home), Client(home) as client:
        assert client.status().position == position
        assert {row.content_id for row in client.query("catalogue", limit=None)} == set(contents)
        for content_id, data in contents.items():
            assert client.request(content_id) == data
        assert client.audit(read_data=True)["ok"]


PUBLISH_POINTS = (
    "publish.after_content",
    "append.before_index",
    "append.after_index",
    "append.after_block",
    "append.after_mark",
    "publish.after_event",
)


@pytest.mark.parametrize(
    "point", [p if p == "append.after_block" else pytest.param(p, marks=pytest.mark.long)
              for p in PUBLISH_POINTS]
)  # fmt: skip
def test_a_publish_cut_off_at_any_step_happens_once(home: Path, plan_crash: pytest.MonkeyPatch, point: str) -> None:
    """The node dies inside a publish; the retry with the same request id leaves exactly one content and no orphan."""
    data, request_id = secrets.token_bytes(3000), secrets.token_bytes(16)
    with Node.open(home), Client(home) as client:
        kept = [client.publish(b"before %d" % n).content_id for n in range(2)]
    # The first time in this run: how often marks are written depends on how fast the publishes come.
    plan_crash.setenv("VAULT_TEST_FAULT", f"{point}:1")
    with Node.open(home) as running:
        until_dead(running, home, lambda client: client.publish(data, name="the one", request_id=request_id))
    plan_crash.delenv("VAULT_TEST_FAULT")
    with Node.open(home), Client(home) as client:
        published = client.publish(data, name="the one", request_id=request_id)
        assert client.request(published.content_id) == data
        listed = [row.content_id for row in client.query("catalogue", limit=None)]
        assert sorted(listed) == sorted([*kept, published.content_id])
        client.wait_for(client.status().position)
        report = client.audit(read_data=True)
        assert report["ok"]
        assert report["blocks"].get("refused", 0) == 0
    with Node.open(home), Client(home) as client:
        assert client.status().details["store"]["contents"] == 3


FORGET_POINTS = (
    "append.after_index",
    "append.after_block",
    "erase.before_store",
    "forget.after_mark",
    "forget.after_slot",
    "forget.after_bytes",
    "forget.after_rows",
    "forget.after_checkpoint",
    "forget.after_tombstone",
    "erase.after_store",
)


@pytest.mark.parametrize(
    "point", [p if p in ("erase.before_store", "forget.after_slot") else pytest.param(p, marks=pytest.mark.long)
              for p in FORGET_POINTS]
)  # fmt: skip
def test_a_forgetting_cut_off_at_any_step_is_finished_at_start(
    home: Path, plan_crash: pytest.MonkeyPatch, point: str
) -> None:
    """The node dies while it forgets; after the restart no plaintext, name or ciphertext is left on the disk."""
    secret, name = secrets.token_bytes(32), secrets.token_bytes(16)
    with Node.open(home), Client(home) as client:
        content_id = client.publish(secret * 40, name=name.hex()).content_id
    (pack,) = (home / "store" / "packs").iterdir()
    canaries = {"content": secret, "name": name, "ciphertext": pack.read_bytes()[-96:-32]}
    assert {hit.canary for hit in find_canaries(home, canaries)} == {"ciphertext"}
    plan_crash.setenv("VAULT_TEST_FAULT", f"{point}:1")
    with Node.open(home) as running:
        until_dead(running, home, lambda client: client.forget(content_id))
    plan_crash.delenv("VAULT_TEST_FAULT")
    with Node.open(home), Client(home) as client:
        # The proposal was on its way to the chain: it gets there by itself, and carries, since all agreed.
        client.wait_for(client.status().position)
        for change in client.subscribe("ballots"):
            if change.row is not None and change.row["receipts"]:
                break
        with pytest.raises(ForgottenError):
            client.request(content_id)
        (ballot,) = client.query("ballots")
        assert (ballot.state, len(ballot.receipts)) == ("carried", 1)
        assert client.audit(read_data=True)["ok"]
    assert find_canaries(home, canaries) == []


@pytest.mark.parametrize(
    "point", ["projections.swap", *(pytest.param(f"projections.{p}", marks=pytest.mark.long)
              for p in ("before_commit", "after_commit", "rebuild"))]
)  # fmt: skip
def test_a_rebuild_that_is_killed_leaves_views_that_are_right(
    home: Path, plan_crash: pytest.MonkeyPatch, point: str
) -> None:
    """Wherever SIGKILL hits a rebuild: the next start serves views with the hashes of before, and rebuilds again."""
    with Node.open(home), Client(home) as client:
        for number in range(5):
            client.publish(b"content %d" % number)
        client.wait_for(client.status().position)
        before = {name: view.hash for name, view in client.status().views.items()}
    plan_crash.setenv("VAULT_TEST_FAULT", f"{point}:1")
    with Node.open(home) as running:
        until_dead(running, home, lambda client: client.replay())
    plan_crash.delenv("VAULT_TEST_FAULT")
    with Node.open(home), Client(home) as client:
        client.wait_for(client.status().position)
        assert {name: view.hash for name, view in client.status().views.items()} == before
        assert len(client.query("catalogue")) == 5
        assert all(view["equal"] for view in client.replay().values())
