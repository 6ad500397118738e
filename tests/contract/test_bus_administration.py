"""Administration over a bus that loses messages: done once, and told truly; never behind somebody's reading."""

from __future__ import annotations

import errno
import subprocess
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.bus_world import World, link_of
from support.raw_client import Raw, eventually, ident
from walytis_vault import node
from walytis_vault.bus import calls as c
from walytis_vault.bus import kept_replies, pace, security
from walytis_vault.bus.clients import ClientTable
from walytis_vault.bus.kept_replies import KeptReplies
from walytis_vault.bus.messages import RequestKey
from walytis_vault.bus.protocol import Kind
from walytis_vault.bus.security import add_client, list_clients
from walytis_vault.client import Client
from walytis_vault.domain.errors import ConflictError, StorageError, WrongPassphraseError
from walytis_vault.process import Job


@pytest.fixture
def forgetful(world: World, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client to which the first reply to each request gets lost."""
    monkeypatch.setattr(pace, "REPEAT", 0.05)
    client = world.client()
    link, seen = link_of(client), set[bytes]()
    deliver = link.incoming

    def incoming(parts: list[memoryview]) -> None:
        head = bytes(parts[0])
        if head[4] == Kind.REPLY and head not in seen:
            seen.add(head)
        else:
            deliver(parts)

    link.incoming = incoming  # type: ignore[method-assign]
    return client


def test_a_repeated_call_of_administration_is_answered_and_not_done_again(world: World, forgetful: Client) -> None:
    """When the reply got lost: one invitation, a passphrase that was changed, bytes that were freed by this call."""
    forgetful.invite()
    assert len(world.service.invited) == 1
    forgetful.change_passphrase("open sesame", "new")
    assert world.service.passphrase == "new"
    content_id = forgetful.publish(b"12345").content_id
    assert forgetful.drop(content_id, force=True).freed == 5
    with pytest.raises(WrongPassphraseError):
        forgetful.change_passphrase("open sesame", "other")


def key(client: str = "a", digest: bytes = b"d") -> RequestKey:
    return RequestKey(client=client, request_id=b"i" * 16, digest=digest)


def test_kept_replies_are_of_one_client_and_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another client's are not found, another request's are a conflict, old ones and those before a lock are gone."""
    now = [0.0]
    monkeypatch.setattr("walytis_vault.bus.kept_replies.time.monotonic", lambda: now[0])
    kept, invite = KeptReplies(), c.InviteCall(expires_s=1.0)
    assert [KeptReplies.wants(call) for call in (invite, c.LockCall(), c.StatusCall(), c.RemoveCall(did="d"))] == [
        True,
        True,
        False,
        False,
    ]
    kept.keep(key(), invite, b"code")
    assert kept.find(key(), invite) == b"code"
    assert kept.find(key(client="b"), invite) is None
    with pytest.raises(ConflictError):
        kept.find(key(digest=b"other"), invite)
    kept.keep(key(client="large"), invite, bytes(kept_replies.KEPT_SIZE + 1))
    assert kept.find(key(client="large"), invite) is None
    now[0] = kept_replies.KEPT_S + 1
    assert kept.find(key(), invite) is None
    for n in range(kept_replies.KEPT_MOST + 1):
        kept.keep(key(client=str(n)), invite, b"code")
    assert kept.find(key(client="0"), invite) is None
    assert kept.find(key(client="1"), invite) == b"code"
    kept.keep(key(client="locks"), c.LockCall(), b"locked")
    assert kept.find(key(client="1"), invite) is None
    assert kept.find(key(client="locks"), c.LockCall()) == b"locked"


def test_no_digest_of_a_passphrase_is_kept() -> None:
    """What is kept of a call with a passphrase does not tell which it was."""
    kept, call = KeptReplies(), c.UnlockCall(passphrase="secret")
    kept.keep(key(digest=b"of the passphrase"), call, b"reply")
    assert b"of the passphrase" not in msgspec.msgpack.encode(list(kept._kept.values()))
    assert kept.find(key(digest=b"of another"), call) == b"reply"


def test_questions_about_the_past_do_not_hold_up_administration(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a key that may only read has many views of the past folded, the vault is locked all the same."""
    add_client(world.home / "bus", "reader", ["read"])
    release, query = threading.Event(), world.service.query

    def slow(*arguments: Any, **named: Any) -> Any:
        assert release.wait(30)
        return query(*arguments, **named)

    monkeypatch.setattr(world.service, "query", slow)
    raw = Raw(world, key_name="reader")
    for _ in range(20):
        raw.send(Kind.REQUEST, ident(), c.QueryCall(view="catalogue", limit=1, as_of=1))
    assert eventually(lambda: world.server.details()["running"] == 20)
    world.client().lock()
    assert world.service.locked
    release.set()
    raw.close()


def test_a_reply_over_another_connection_counts_where_it_was_asked(world: World) -> None:
    """A call that is asked for again over a second connection is answered there, and no longer counted at the first."""
    world.service.latency = 0.3
    first, second = Raw(world), Raw(world)
    request = ident()
    for raw in (first, second):
        raw.send(Kind.REQUEST, request, c.PublishCall(inline=True), b"x")
        assert eventually(lambda: world.server.details()["running"] == 1)
    assert second.receive()[:2] == (Kind.REPLY, request)
    assert world.server._door is not None
    assert [peer.requests for peer in world.server._door._peers.values()] == [0, 0]
    first.close()
    second.close()


def test_a_client_whose_file_cannot_be_read_now_is_not_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of descriptors nobody is cut, and the file is read when it can be; a file that is gone revokes."""
    for name in ("one", "two"):
        add_client(tmp_path, name)
    table, read = ClientTable(tmp_path), security.read_private
    keys = {entry.name: entry.public_key for entry in list_clients(tmp_path)}

    def unreadable(path: Path) -> bytes:
        if path.stem == "one":
            raise StorageError("cannot read") from OSError(errno.EMFILE, "too many open files")
        return read(path)

    monkeypatch.setattr(security, "read_private", unreadable)
    add_client(tmp_path, "three")
    assert table.refresh()
    assert all(table.by_key(k) for k in keys.values())
    security.revoke_client(tmp_path, "two")
    assert table.refresh()
    assert table.by_key(keys["two"]) is None
    assert table.by_key(keys["one"]) is not None
    security.revoke_client(tmp_path, "one")
    assert table.refresh()
    assert table.by_key(keys["one"]) is None


def test_a_child_that_does_not_listen_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the job cannot be handed over, the node's process and its pipes are gone with the error."""
    started: list[subprocess.Popen[bytes]] = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)

    monkeypatch.setattr(node, "CHILD_MODULE", "support.there_is_no_such_module")
    monkeypatch.setattr("subprocess.Popen", Started)
    with pytest.raises(StorageError):
        node._start(Job(kind="found", home=str(tmp_path), passphrase="x" * (1 << 20)), None)
    (child,) = started
    assert child.returncode is not None
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdin.closed
    assert child.stdout.closed
