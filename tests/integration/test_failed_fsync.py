"""A node whose disk fails in a commit ends itself with a word, and its next start knows what took effect."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from support.failing_disk_process import VARIABLE
from support.peer_nodes import eventually
from walytis_vault import Client, Node, VaultError, node


@pytest.mark.parametrize(
    "sync", [pytest.param(1, marks=pytest.mark.long, id="of the store"), pytest.param(2, id="of the log")]
)
def test_a_node_whose_fsync_failed_ends_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: int) -> None:
    """It says so in its log; the same request to the next one is answered with a content that reads back."""
    home, told = tmp_path / "home", tmp_path / "fail"
    request_id, data = secrets.token_bytes(16), secrets.token_bytes(500)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.setattr(node, "CHILD_MODULE", "support.failing_disk_process")
    monkeypatch.setenv(VARIABLE, str(told))
    with Node.create(home) as running, Client(home, timeout=3) as client:
        before = client.publish(b"before").content_id
        told.write_text(str(sync))
        with pytest.raises(VaultError):
            client.publish(data, request_id=request_id)
        eventually(lambda: not running.running, "the node ends itself")
        assert "nothing more may be written; ending at once" in (home / "node.log").read_text()
    told.unlink()
    with Node.open(home), Client(home) as client:
        done = client.publish(data, request_id=request_id).content_id
        assert client.request(done) == data
        assert client.request(before) == b"before"
        assert {row.content_id for row in client.query("catalogue")} == {before, done}
        assert client.audit(read_data=True)["ok"]
