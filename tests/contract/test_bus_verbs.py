"""Every verb, over real sockets, on both clients."""

from __future__ import annotations

import datetime as dt
import io
import os
import secrets
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from support.bus_world import World
from walytis_vault.bus.messages import Published, Verb
from walytis_vault.bus.security import ALL_VERBS, add_client
from walytis_vault.client import Client
from walytis_vault.domain.errors import (
    ConflictError,
    ForgottenError,
    LockedError,
    MisuseError,
    PermissionRefusedError,
    RetractedError,
    TimedOutError,
    UnknownIdError,
    WrongPassphraseError,
)


def test_small_content_comes_back(client: Client) -> None:
    """What was published is what is requested."""
    published = client.publish(b"hello", name="greeting", media_type="text/plain", labels=("a", "b"), note="n")
    assert isinstance(published, Published)
    assert published.position == 1
    assert client.request(published.content_id) == b"hello"
    row = client.query("catalogue")[0]
    assert (row.content_id, row.name, row.size, row.labels) == (published.content_id, "greeting", 5, ("a", "b"))
    assert row.as_dict()["media_type"] == "text/plain"
    assert dict(row)["state"] == "available"


@pytest.mark.parametrize("size", [0, 1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 5 << 20])
def test_sizes_around_the_limits(client: Client, tmp_path: Path, size: int) -> None:
    """Empty, inline, just over inline and streamed contents come back equal, from bytes, file object and path."""
    data = os.urandom(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    target = tmp_path / "target"
    for given in (data, io.BytesIO(data), source):
        published = client.publish(given)
        assert client.request(published.content_id) == data
        assert client.request(published.content_id, to=target) is None
        assert target.read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bus", "source", "target"]


def test_a_path_gives_its_name(client: Client, tmp_path: Path) -> None:
    """A content from a path is named as the file unless a name is given."""
    (tmp_path / "photo.jpg").write_bytes(b"x")
    client.publish(tmp_path / "photo.jpg")
    client.publish(tmp_path / "photo.jpg", name="other")
    assert [r.name for r in client.query("catalogue")] == ["photo.jpg", "other"]


def test_an_unseekable_source_of_unknown_length(client: Client) -> None:
    """A pipe is streamed until its end."""
    read, write = os.pipe()
    data = os.urandom(700_000)

    def feed() -> None:
        with os.fdopen(write, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(read, "rb") as file:
        published = client.publish(file)
    thread.join()
    assert client.request(published.content_id) == data


def test_request_into_an_open_file(client: Client) -> None:
    """`to` may be a binary file object, which stays open."""
    published = client.publish(b"abc" * 100_000)
    buffer = io.BytesIO()
    assert client.request(published.content_id, to=buffer) is None
    assert buffer.getvalue() == b"abc" * 100_000


def test_progress_is_reported(client: Client) -> None:
    """Progress grows to the total in both directions."""
    seen: list[tuple[int, int | None]] = []
    published = client.publish(b"x" * 3_000_000, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3_000_000, 3_000_000)
    assert sorted(seen) == seen
    seen.clear()
    client.request(published.content_id, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3_000_000, 3_000_000)


def test_forget_and_what_remains(client: Client) -> None:
    """A forgotten content is refused with the reason, and its record remains."""
    content_id = client.publish(b"secret", name="n").content_id
    ballot = client.forget(content_id, reason="enough")
    assert (ballot.state, ballot.contents) == ("carried", (content_id,))
    with pytest.raises(ForgottenError):
        client.request(content_id)
    assert client.query("catalogue")[0].state == "forgotten"
    assert client.query("ballots")[0].ballot_id == ballot.ballot_id


def test_ballots(world: World, client: Client) -> None:
    """Consent carries, refusal and withdrawal end, a ballot of several."""
    world.service.electorate = ("did:me", "did:you")
    a, b, c = (client.publish(bytes([n])).content_id for n in range(3))
    ballot = client.forget(a, a)
    assert ballot.state == "open"
    assert client.consent(ballot.ballot_id).state == "carried"
    assert client.refuse(client.forget(b).ballot_id, reason="no").state == "refused"
    ballot = client.forget(c)
    assert client.withdraw(ballot.ballot_id).state == "withdrawn"
    with pytest.raises(MisuseError):
        client.consent(ballot.ballot_id)


def test_retract_and_restore(client: Client) -> None:
    """A retracted content is refused until it is restored."""
    content_id = client.publish(b"x").content_id
    assert client.retract(content_id) == 2
    with pytest.raises(RetractedError):
        client.request(content_id)
    assert client.restore(content_id) == 3
    assert client.request(content_id) == b"x"


def test_queries_page_through_everything(client: Client, world: World) -> None:
    """limit=None gives all rows however many pages they are; a limit gives so many; filters narrow."""
    for n in range(1203):
        world.service.begin_publish_row(n)
    assert len(client.query("catalogue", limit=None)) == 1203
    assert len(client.query("catalogue")) == 100
    assert len(client.query("catalogue", limit=777)) == 777
    assert client.query("catalogue", limit=0) == []
    assert [r.name for r in client.query("catalogue", name="7")] == ["7"]


def test_pages_follow_by_cursor(client: Client, world: World) -> None:
    """A page brings the cursor of the next one, the last page none; rows that come meanwhile are not repeated."""
    for n in range(7):
        world.service.begin_publish_row(n)
    first = client.page("catalogue", limit=3)
    assert [r.name for r in first.rows] == ["0", "1", "2"]
    second = client.page("catalogue", limit=3, cursor=first.cursor)
    last = client.page("catalogue", limit=3, cursor=second.cursor)
    assert [r.name for r in (*second.rows, *last.rows)] == ["3", "4", "5", "6"]
    assert (last.cursor, last.position) == (None, 7)


def test_the_past_is_asked_by_position_or_time(client: Client, world: World) -> None:
    """`as_of` reaches the node as a position or a time with its zone; anything else is refused before it is sent."""
    for n in range(5):
        world.service.begin_publish_row(n)
    assert len(client.query("catalogue", as_of=2)) == 2
    assert len(client.page("catalogue", as_of=3).rows) == 3
    client.query("catalogue", as_of=dt.datetime.now(dt.UTC))
    client.query("catalogue", as_of="2026-01-01T00:00:00Z")
    for wrong in (-1, True, "", dt.datetime(2026, 1, 1), 1.5):  # noqa: DTZ001
        with pytest.raises(MisuseError, match="as_of"):
            client.query("catalogue", as_of=wrong)  # type: ignore[arg-type]


def test_rows_that_are_large_still_come(client: Client, world: World) -> None:
    """A page is made smaller rather than refused when its rows are large."""
    for _ in range(40):
        client.publish(b"x", name="n" * 4000, labels=tuple("l" * 250 + str(i) for i in range(60)))
    assert len(client.query("catalogue", limit=None)) == 40


def test_status_members_and_administration(client: Client) -> None:
    """Status, members, invite, remove, audit and replay answer."""
    status = client.status()
    assert status.vault_id == "vault-in-memory"
    assert set(status.views) >= {"catalogue", "ballots"}
    assert [m.did for m in client.members()] == ["did:me"]
    assert client.invite(expires=60).endswith(("-60", "-59"))
    (first,) = client.invitations()
    assert (first.state, first.own_device) == ("open", False)
    client.invite(device=True)
    assert [i.own_device for i in client.invitations()] == [False, True]
    assert client.revoke_invitation(first.invitation_id).state == "revoked"
    assert [i.state for i in client.invitations()] == ["revoked", "open"]
    with pytest.raises(UnknownIdError):
        client.revoke_invitation("none")
    with pytest.raises(MisuseError):
        client.revoke_invitation("")
    assert client.remove("did:me", reason="why") == 1
    assert [m.reason for m in client.members()] == ["why"]
    with pytest.raises(UnknownIdError):
        client.remove("did:me", device=True)
    report = client.audit(read_data=True)
    assert (report["read_data"], report["contents"], report["cursor"]) == (True, [0, 1, 2], None)
    assert client.replay("catalogue")["views"] == ["catalogue"]
    assert client.retry("catalogue")["catalogue"]["parked"] == 0


def test_drop_lock_and_passphrase(client: Client) -> None:
    """A drop without force tells what it would lose; a locked node refuses to read; passphrases change."""
    content_id = client.publish(b"hello").content_id
    with pytest.raises(ConflictError):
        client.drop(content_id)
    client.lock()
    assert client.status().locked
    with pytest.raises(LockedError):
        client.request(content_id)
    with pytest.raises(WrongPassphraseError):
        client.unlock("no")
    client.change_passphrase("open sesame", "new")
    client.unlock("new")
    assert client.request(content_id) == b"hello"
    assert client.drop(content_id.upper(), content_id, force=True).contents == (content_id,)
    for wrong in (
        lambda: client.drop(),
        lambda: client.unlock(""),
        lambda: client.unlock(b"bytes"),  # type: ignore[arg-type]
        lambda: client.change_passphrase("x" * 5000, "y"),
    ):
        with pytest.raises(MisuseError):
            wrong()


def test_an_export_is_put_together_from_its_pages(client: Client, tmp_path: Path) -> None:
    """Pages come one after the other, into a file that appears when it is whole; a backup names its folder."""
    done = client.export(tmp_path / "bundle")
    assert (tmp_path / "bundle").read_bytes() == b"line 0\nline 1\nend\n"
    assert (done.digest, done.root, done.size, done.batches) == ("d", "r", 18, 2)
    seen: list[int] = []
    client.export(buffer := io.BytesIO(), progress=lambda size, _: seen.append(size))
    assert (seen, buffer.getvalue()[-4:]) == ([7, 14, 18], b"end\n")
    assert client.backup(tmp_path / "x", passphrase="four").size == 4
    with pytest.raises(MisuseError):
        client.backup(tmp_path / "x", passphrase="four", with_key_file=True)


def test_wait_for(client: Client, world: World) -> None:
    """A wait ends when views get there, at once when they are there, and with TimedOutError otherwise."""
    client.publish(b"x")
    assert client.wait_for(1) == 1
    timer = threading.Timer(0.05, world.service.advance)
    timer.start()
    assert client.wait_for(2) == 2
    with pytest.raises(TimedOutError):
        client.wait_for(99, timeout=0.2)


def test_a_subscription_replays_then_follows(client: Client, world: World) -> None:
    """Every change comes once and in order, those before and those after."""
    world.service.advance(10)
    changes = client.subscribe("events", after=3)
    assert [c.position for c in islice(changes, 7)] == [4, 5, 6, 7, 8, 9, 10]
    published = client.publish(b"x", labels=("l",))
    change = next(changes)
    assert (change.position, change.type, change.ids) == (11, "content-published/1", (published.content_id,))
    filtered = client.subscribe("catalogue", label="l")
    change = next(filtered)
    assert change.row is not None
    assert change.row["content_id"] == published.content_id


def test_the_same_request_id_happens_once(client: Client, world: World) -> None:
    """A publish repeated with its id returns the first receipt; another body under it is an error."""
    key = secrets.token_bytes(16)
    for data in (b"small", b"large" * 100_000):
        key = secrets.token_bytes(16)
        first = client.publish(data, request_id=key, expires=dt.timedelta(days=1))
        assert client.publish(data, request_id=key.hex(), expires=dt.timedelta(days=1)) == first
        with pytest.raises(ConflictError):
            client.publish(data, request_id=key, name="another")
    assert world.service.position == 2
    ballot = client.forget(first.content_id, request_id=secrets.token_bytes(16))
    assert ballot.state == "carried"


VERB_OF: dict[Verb, tuple[str, ...]] = {
    "read": ("status", "query", "request", "subscribe", "wait_for", "members"),
    "publish": ("publish", "publish_stream", "retract", "restore"),
    "forget": ("forget", "consent", "refuse", "withdraw"),
    "admin": (
        "invite",
        "invitations",
        "revoke_invitation",
        "remove",
        "drop",
        "lock",
        "unlock",
        "passphrase",
        "audit",
        "replay",
        "retry",
        "export",
        "backup",
    ),
}


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_a_key_may_only_use_its_verbs(world: World, verb: Verb) -> None:
    """Of all calls, a key with one verb may use those of that verb, and is refused every other."""
    add_client(world.home / "bus", "limited", [verb])
    client = world.client(key="limited")
    some = secrets.token_hex(16)
    calls: dict[str, Callable[[], object]] = {
        "status": client.status,
        "query": lambda: client.query("catalogue"),
        "members": client.members,
        "request": lambda: client.request(some),
        "subscribe": lambda: client.subscribe("events").next(0.2),
        "wait_for": lambda: client.wait_for(0),
        "publish": lambda: client.publish(b"x"),
        "publish_stream": lambda: client.publish(b"x" * 200_000),
        "retract": lambda: client.retract(some),
        "restore": lambda: client.restore(some),
        "forget": lambda: client.forget(some),
        "consent": lambda: client.consent(some),
        "refuse": lambda: client.refuse(some),
        "withdraw": lambda: client.withdraw(some),
        "invite": client.invite,
        "invitations": client.invitations,
        "revoke_invitation": lambda: client.revoke_invitation("00"),
        "remove": lambda: client.remove("did:none"),
        "audit": client.audit,
        "replay": client.replay,
        "retry": client.retry,
        "drop": lambda: client.drop(some, force=True),
        "lock": client.lock,
        "unlock": lambda: client.unlock("open sesame"),
        "passphrase": lambda: client.change_passphrase("open sesame", "x"),
        "export": lambda: client.export(io.BytesIO()),
        "backup": lambda: client.backup("/nowhere"),
    }
    assert {name for names in VERB_OF.values() for name in names} == set(calls)
    for name, call in calls.items():
        if name in VERB_OF[verb]:
            try:
                call()
            except PermissionRefusedError:
                pytest.fail(f"{name} was refused")
            except UnknownIdError:
                pass
        else:
            with pytest.raises(PermissionRefusedError):
                call()
