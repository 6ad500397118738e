"""Client keys, endpoint records, rows and local files, without a socket."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from walytis_vault.bus import files
from walytis_vault.bus.endpoint import Address, EndpointRecord, read_record, write_record
from walytis_vault.bus.files import Source, Target
from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.rows import make_row
from walytis_vault.bus.security import add_client, bus_keys, list_clients, load_key, make_keys, revoke_client
from walytis_vault.domain.errors import ConflictError, MisuseError, NoNodeError, StorageError, UnknownIdError


def test_a_client_is_added_listed_and_revoked(tmp_path: Path) -> None:
    """An added client is listed with its verbs, its secret is private, and it is gone when revoked."""
    path = add_client(tmp_path / "bus", "app", ["forget", "read"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "bus").stat().st_mode & 0o777 == 0o700
    entry = list_clients(tmp_path / "bus")[0]
    key = load_key(path)
    assert (entry.name, entry.verbs, entry.public_key) == ("app", ("read", "forget"), key.public_key)
    assert key.secret_key not in repr(key)
    assert key.secret_key.encode() not in (tmp_path / "bus" / "clients" / "app.json").read_bytes()
    with pytest.raises(ConflictError):
        add_client(tmp_path / "bus", "app")
    revoke_client(tmp_path / "bus", "app")
    assert list_clients(tmp_path / "bus") == []
    assert not path.exists()
    with pytest.raises(UnknownIdError):
        revoke_client(tmp_path / "bus", "app")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "x" * 65, "a b", "a\0", "a\n"])
def test_bad_client_names(tmp_path: Path, name: str) -> None:
    """A name that could be a path, or is none, is refused."""
    with pytest.raises(MisuseError):
        add_client(tmp_path, name)
    with pytest.raises(MisuseError):
        revoke_client(tmp_path, name)


def test_bad_verbs(tmp_path: Path) -> None:
    """Unknown verbs and none at all are refused."""
    for verbs in ([], ["fly"], ["read", "fly"]):
        with pytest.raises(MisuseError):
            add_client(tmp_path, "app", verbs)  # type: ignore[arg-type]
    assert not (tmp_path / "app.key").exists()


def test_files_that_others_could_have_made_admit_nobody(tmp_path: Path) -> None:
    """Entries that others may read, links, damaged and misnamed ones are left out; a key like that is refused."""
    add_client(tmp_path, "good")
    folder = tmp_path / "clients"
    good = (folder / "good.json").read_bytes()
    for name, data, mode in (
        ("loose", good.replace(b"good", b"loose"), 0o644),
        ("torn", good[:20], 0o600),
        ("other", good, 0o600),
        ("large", good + b" " * 5000, 0o600),
    ):
        (folder / f"{name}.json").write_bytes(data)
        (folder / f"{name}.json").chmod(mode)
    (folder / "link.json").symlink_to(folder / "good.json")
    assert [e.name for e in list_clients(tmp_path)] == ["good"]
    (tmp_path / "good.key").chmod(0o640)
    with pytest.raises(MisuseError):
        load_key(tmp_path / "good.key")
    with pytest.raises(MisuseError):
        load_key(tmp_path / "none.key")


def test_server_keys_in_every_form() -> None:
    """A secret key is taken as raw bytes and as Z85, and gives the same pair; nonsense is refused."""
    keys = make_keys()
    raw = z85.decode(keys.secret)
    assert bus_keys(raw) == bus_keys(keys.secret) == bus_keys(keys.secret.encode()) == keys
    assert keys.secret not in repr(keys)
    for bad in (b"", b"x" * 31, "x" * 41, b"\xff" * 40):
        with pytest.raises(MisuseError):
            bus_keys(bad)


def test_the_endpoint_record(tmp_path: Path) -> None:
    """A record is read back; a missing or damaged one means that there is no node."""
    with pytest.raises(NoNodeError):
        read_record(tmp_path / "bus")
    record = EndpointRecord(endpoint="ipc:///x", server_key=make_keys().public, pid=1)
    write_record(tmp_path / "bus", record)
    assert read_record(tmp_path / "bus") == record
    (tmp_path / "bus" / "endpoint.json").write_text("{")
    with pytest.raises(NoNodeError):
        read_record(tmp_path / "bus")


@pytest.mark.parametrize("text", ["", "http://x", "ipc://relative", "tcp://", "tcp://x", "tcp://x:y", "inproc://x"])
def test_bad_endpoints(text: str) -> None:
    """What is no endpoint is refused with a sentence."""
    with pytest.raises(MisuseError):
        Address(text)


def test_rows_are_frozen_and_named() -> None:
    """Rows have the view's fields as attributes and items, cannot be changed, and share one class."""
    row = make_row("catalogue", {"content_id": "x", "labels": ["a", ["b"]], "class": 1, "as_dict": 2, "9 z": 3})
    assert row.content_id == row["content_id"] == "x"
    assert row.labels == ("a", ("b",))
    assert row.as_dict()["field_2_"] == 1
    assert callable(row.as_dict)
    with pytest.raises(AttributeError):
        row.content_id = "y"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = row.nothing
    with pytest.raises(KeyError):
        _ = row["nothing"]
    assert type(make_row("v", {"a": 1})) is type(make_row("v", {"a": 2}))


@given(st.dictionaries(st.text(max_size=8), st.none(), max_size=6))
def test_any_field_names_make_a_row(fields: dict[str, None]) -> None:
    """Whatever a view calls its fields, there is a row of as many."""
    assert len(make_row("view", dict(fields)).as_dict()) == len(fields)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """Growing and shrinking are both refused; vanishing does not matter once it is open."""
    path = tmp_path / "f"
    for change in (b"x" * 3_000_000, b""):
        path.write_bytes(b"x" * 2_000_000)
        source = Source(path)
        source.read()
        path.write_bytes(change)
        with pytest.raises(StorageError):
            source.read_all()
        source.close()
    path.write_bytes(b"x" * 2_000_000)
    source = Source(path)
    path.unlink()
    assert len(source.read_all()) == 2_000_000


def test_an_unreadable_file(tmp_path: Path) -> None:
    """A file that cannot be opened is refused."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "f").write_bytes(b"x")
    for path in (tmp_path / "loop", tmp_path / "f" / "g"):
        with pytest.raises(MisuseError):
            Source(path)


@pytest.mark.parametrize("unnamed", [True, False], ids=["without a name", "with a name"])
@pytest.mark.parametrize("old", [b"old", None], ids=["in place of another", "new"])
def test_a_target_appears_only_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool, old: bytes | None
) -> None:
    """Until finish the old file stands, and what comes has no name where that can be; discard leaves nothing."""
    if not unnamed:
        monkeypatch.setattr(files, "_UNNAMED", 0)
    path = tmp_path / "t"
    before = set()
    if old is not None:
        path.write_bytes(old)
        before = {"t"}
    umask = os.umask(0o027)
    try:
        for finish in (False, True):
            target = Target(path)
            target.write(memoryview(b"new"))
            assert {p.name for p in tmp_path.iterdir()} == before or not unnamed
            assert (path.read_bytes() if path.exists() else None) == old
            if finish:
                target.finish()
            target.discard()
            assert {p.name for p in tmp_path.iterdir()} == (before | {"t"} if finish else before)
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_sources_from_the_middle_of_a_file() -> None:
    """A file object is read from where it stands, and rewound to there."""
    file = io.BytesIO(b"0123456789")
    file.seek(4)
    source = Source(file)
    assert source.size == 6
    assert source.read_all() == b"456789"
    source.rewind()
    assert source.read_all() == b"456789"


def test_the_pool_takes_owners_in_turn() -> None:
    """One owner's hundred tasks do not delay another's one."""
    pool = FairPool("test", 1)
    gate, done = threading.Event(), threading.Event()
    seen: list[tuple[str, int]] = []

    def block() -> None:
        gate.wait(5)

    pool.submit("a", block)
    for n in range(100):
        pool.submit("a", lambda n=n: seen.append(("a", n)))  # type: ignore[misc]
    pool.submit("b", lambda: seen.append(("b", 0)))
    pool.submit("a", done.set)
    gate.set()
    assert done.wait(5)
    assert ("b", 0) in seen[:2]
    assert [n for owner, n in seen if owner == "a"] == list(range(100))
    pool.close()
    assert pool.join(2)
