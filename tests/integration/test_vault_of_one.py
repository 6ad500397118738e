"""A vault of one on a real node, used as programs use it: publish, revise, hide, expire, forget, watch."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import io
import json
import os
import secrets
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.canaries import find_canaries
from support.planned_process import Planned
from walytis_vault import (
    AsyncClient,
    Client,
    ConflictError,
    ForgottenError,
    MisuseError,
    Node,
    NotYetAvailableError,
    PermissionRefusedError,
    RetractedError,
    StorageError,
    UnknownIdError,
    VaultError,
)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests of this module."""
    with Node.create(tmp_path_factory.mktemp("vault") / "home") as node:
        yield node


@pytest.fixture
def client(vault: Node) -> Iterator[Client]:
    """A client of it."""
    with Client(vault.home) as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, 1023, 70_000, 3_500_000])
def test_any_size_comes_back_as_it_was(client: Client, size: int) -> None:
    """Empty, small and large contents come back byte for byte."""
    data = secrets.token_bytes(size)
    assert client.request(client.publish(data).content_id) == data


def test_an_empty_stream_of_unknown_length_comes_back_empty(client: Client) -> None:
    """A source that cannot tell its size and gives nothing is an empty content, not a hang."""
    assert client.request(client.publish(Path("/dev/null")).content_id) == b""


def test_what_was_said_about_a_content_is_listed(client: Client) -> None:
    """Name, media type, labels and true size appear in the catalogue at once."""
    published = client.publish(b"hello", name="grüße.txt", media_type="text/plain", labels=("a", "b"))
    (row,) = client.query("catalogue", content_id=published.content_id)
    assert (row.name, row.media_type, list(row.labels), row.size) == ("grüße.txt", "text/plain", ["a", "b"], 5)
    assert row.state == "available"
    assert row.position == published.position


def test_one_process_publishes_and_another_hears_of_it(vault: Node) -> None:
    """A subscriber in another process gets every change once, in order, from the position it asked for."""
    program = textwrap.dedent(
        """
        import sys
        from walytis_vault import Client
        home, after, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        with Client(home) as client:
            changes = client.subscribe("events", after=after)
            print("listening", flush=True)
            for _, change in zip(range(count), changes):
                print(change.position, change.type, *change.ids, flush=True)
        """
    )
    with Client(vault.home) as client:
        after = client.status().position
        first = client.publish(b"before it listens")
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(vault.home), str(after), "3"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "listening\n"
            others = [client.publish(b"while it listens %d" % n) for n in range(2)]
            out = child.stdout.read()  # not communicate(): that would lose what readline() read ahead
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
    expected = [f"{p.position} content-published/1 {p.content_id}" for p in (first, *others)]
    assert out.splitlines() == expected


def test_the_same_request_id_takes_effect_once(client: Client) -> None:
    """A repeated request gets the first reply; another body under the same id is refused."""
    request_id = secrets.token_bytes(16)
    first = client.publish(b"once", request_id=request_id)
    assert client.publish(b"once", request_id=request_id) == first
    with pytest.raises(ConflictError):
        client.publish(b"other", request_id=request_id)


def test_many_threads_publish_through_one_client(client: Client) -> None:
    """Every content of every thread is there once."""
    ids: list[str] = []

    def work(mine: int) -> None:
        ids.extend(client.publish(b"%d %d" % (mine, n), labels=("crowd",)).content_id for n in range(5))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ids) == sorted(row.content_id for row in client.query("catalogue", label="crowd", limit=None))


def test_revisions_stand_beside_their_original(client: Client) -> None:
    """A revision names the original; the newest is current, the older one stays readable."""
    first = client.publish(b"one", name="draft")
    second = client.publish(b"two", name="draft", revises=first.content_id)
    third = client.publish(b"three", name="draft", revises=second.content_id)
    (row,) = client.query("catalogue", content_id=third.content_id)
    assert (row.revises, row.current, row.conflict) == (first.content_id, True, False)
    assert client.request(first.content_id) == b"one"
    assert client.request(third.content_id) == b"three"


def test_forgetting_takes_all_revisions(client: Client) -> None:
    """When the original is forgotten, so is everything that revised it."""
    first = client.publish(b"one")
    second = client.publish(b"two", revises=first.content_id)
    ballot = client.forget(first.content_id, reason="no longer true")
    assert (ballot.state, len(ballot.receipts)) == ("carried", 1)
    for content_id in (first.content_id, second.content_id):
        with pytest.raises(ForgottenError, match="only its record remains"):
            client.request(content_id)
    (row,) = client.query("catalogue", content_id=second.content_id, state="forgotten")
    assert (row.name, row.state) == (None, "forgotten")
    with pytest.raises(ForgottenError):
        client.publish(b"three", revises=first.content_id)


def test_a_retracted_content_is_hidden_and_can_be_restored(client: Client) -> None:
    """Retraction hides without erasing; only restoring brings it back."""
    published = client.publish(b"oops")
    client.retract(published.content_id)
    with pytest.raises(RetractedError):
        client.request(published.content_id)
    client.restore(published.content_id)
    assert client.request(published.content_id) == b"oops"


def test_a_content_expires_at_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node erases it by itself and publishes the receipt; requesting it says that it is gone."""
    planned = Planned(monkeypatch, tmp_path)
    with Node.create(tmp_path / "home") as _, Client(tmp_path / "home") as client:
        published = client.publish(b"short-lived", expires=dt.timedelta(hours=1))
        later = client.publish(b"lives longer", expires=dt.timedelta(hours=3)).content_id
        assert client.request(published.content_id) == b"short-lived"
        planned.set_ahead(dt.timedelta(hours=2))
        with pytest.raises(ForgottenError, match="expired"):
            client.request(published.content_id)
        client.publish(b"whatever is new makes the node look at the clock")
        for change in client.subscribe("events", after=published.position):
            if change.type == "content-erased/1" and published.content_id in change.ids:
                break
        with pytest.raises(ForgottenError):
            client.request(published.content_id)
        assert client.query("ballots", content_id=published.content_id) == []
        assert client.request(later) == b"lives longer"


def test_what_the_disk_lost_is_told(tmp_path: Path) -> None:
    """A blob that vanished and one flipped bit of a key: status, audit and catalogue say so; the rest is as it was."""
    home = tmp_path / "home"
    with Node.create(home) as _, Client(home) as client:
        bytes_lost = client.publish(secrets.token_bytes(300_000), name="lost bytes").content_id
        key_lost = client.publish(b"lost key", name="lost key").content_id
        whole = client.publish(b"whole").content_id
        assert client.status().details["problems"] == []
    (home / "store" / "blobs" / f"{bytes_lost}.blob").unlink()
    with (home / "store" / "keys.slots").open("r+b") as slots:
        slots.seek(4096 + 128 + 20)
        (byte,) = slots.read(1)
        slots.seek(4096 + 128 + 20)
        slots.write(bytes([byte ^ 1]))
    with Node.open(home) as _, Client(home) as client:
        assert "lost bytes or keys of one content" in " ".join(client.status().details["problems"])
        report = client.audit(read_data=True)
        assert not report["ok"]
        assert {entry["content_id"] for entry in report["damaged"]} == {bytes_lost, key_lost}
        assert report["damaged_total"] == 2
        for content_id in (bytes_lost, key_lost):
            with pytest.raises(NotYetAvailableError):
                client.request(content_id, timeout=5)
        states = {row.content_id: row.state for row in client.query("catalogue")}
        assert states == {bytes_lost: "pending", key_lost: "pending", whole: "available"}
        assert "lost bytes or keys of 2 contents" in " ".join(client.status().details["problems"])
        client.forget(bytes_lost, key_lost)
        assert client.audit(read_data=True)["ok"]
        assert client.status().details["problems"] == []
        assert client.request(whole) == b"whole"


def test_files_and_streams_go_in_and_out(client: Client, tmp_path: Path) -> None:
    """Paths and file objects are published; `to` writes a file that appears when it is complete."""
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(secrets.token_bytes(2_000_000))
    seen: list[int] = []
    published = client.publish(source, progress=lambda done, _total: seen.append(done))
    assert client.request(published.content_id, to=target) is None
    assert target.read_bytes() == source.read_bytes()
    assert seen[-1] == 2_000_000
    buffer = io.BytesIO()
    again = client.publish(io.BytesIO(b"from a stream"))
    client.request(again.content_id, to=buffer)
    assert buffer.getvalue() == b"from a stream"


MISTAKES: dict[str, tuple[Callable[[Any], object], type[VaultError] | tuple[type[VaultError], ...]]] = {
    "an unknown content": (lambda c: c.request("00" * 16), UnknownIdError),
    "no id": (lambda c: c.request("not an id"), MisuseError),
    "a number for an id": (lambda c: c.request(12), MisuseError),
    "forgetting an unknown content": (lambda c: c.forget("00" * 16), UnknownIdError),
    "forgetting nothing": (lambda c: c.forget(), MisuseError),
    "a name of 10 kB": (lambda c: c.publish(b"x", name="n" * 10_000), MisuseError),
    "a media type with a line end": (lambda c: c.publish(b"x", media_type="text/plain\n"), MisuseError),
    "too many labels": (lambda c: c.publish(b"x", labels=("l",) * 65), MisuseError),
    "a text for bytes": (lambda c: c.publish("text"), MisuseError),
    "revising an unknown content": (lambda c: c.publish(b"x", revises="00" * 16), UnknownIdError),
    "an expiry in the past": (lambda c: c.publish(b"x", expires=dt.timedelta(seconds=-5)), MisuseError),
    "a folder": (lambda c: c.publish(Path("/")), MisuseError),
    "a missing file": (lambda c: c.publish(Path("/no/such/file")), (MisuseError, StorageError)),
    "an unknown view": (lambda c: c.query("no-such-view"), UnknownIdError),
    "an unknown filter": (lambda c: c.query("catalogue", no_such_filter=1), MisuseError),
    "an unknown ballot": (lambda c: c.consent("00" * 16), UnknownIdError),
    "retracting an unknown content": (lambda c: c.retract("00" * 16), UnknownIdError),
    "removing a stranger": (lambda c: c.remove("did:nobody:x"), (UnknownIdError, MisuseError, PermissionRefusedError)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_gets_an_error_of_ours(client: Client, mistake: str) -> None:
    """Each mistake raises the error that says what to do, and the vault goes on."""
    wrong, error = MISTAKES[mistake]
    with pytest.raises(error):
        wrong(client)
    assert client.status().position > 0


def test_the_audit_finds_nothing_wrong(client: Client) -> None:
    """After all of this every batch verifies, every byte is what the record says, and views rebuild equal."""
    report = client.audit(read_data=True)
    assert report["ok"], report
    assert all(view["equal"] for view in client.replay().values())
    assert client.status().details["errors"] == {}


def test_the_record_goes_out_as_a_file_that_a_stranger_can_check(vault: Node, client: Client, tmp_path: Path) -> None:
    """A bundle from the node verifies in a process that knows no vault; it holds no names and no content."""
    secret, name = secrets.token_bytes(32), secrets.token_bytes(16).hex()
    published = client.publish(secret * 3, name=name, labels=(name[::-1],))
    canaries = {"content": secret, "name": name.encode(), "label": name[::-1].encode()}
    done = client.export(tmp_path / "bundle")

    async def again() -> str:
        async with AsyncClient(vault.home) as other:
            return (await other.export(tmp_path / "again")).digest

    assert asyncio.run(again()) == done.digest
    assert hashlib.sha256((tmp_path / "bundle").read_bytes().rpartition(b'{"type":"end"')[0]).hexdigest() == done.digest
    assert find_canaries(tmp_path, canaries) == []
    (tmp_path / "control").write_text(repr(client.query("catalogue", content_id=published.content_id)))
    assert {hit.canary for hit in find_canaries(tmp_path, canaries)} == {"name", "label"}

    def check(*words: str) -> tuple[int, dict[str, Any]]:
        child = subprocess.run(
            [sys.executable, "-m", "walytis_vault", "verify", str(tmp_path / "bundle"), "--json", *words],
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "HOME": str(tmp_path / "nowhere"),
                "PATH": os.environ["PATH"],
            },
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return child.returncode, json.loads(child.stdout)

    code, report = check("--root", done.root, "--digest", done.digest, "--vault", done.vault_id)
    assert (code, report["ok"]) == (0, True), report["findings"]
    assert published.content_id in {row["content_id"] for row in report["contents"]}
    assert report["exported"]["member"] == client.status().did
    lines = (tmp_path / "bundle").read_bytes().splitlines(keepends=True)
    (tmp_path / "bundle").write_bytes(b"".join(lines[:3] + lines[4:]))
    code, report = check()
    assert (code, report["ok"]) == (1, False)
