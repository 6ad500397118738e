"""Backups of a real node: whole while it runs, sealed, and without what was forgotten when they are restored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from support.canaries import find_canaries
from support.command_line import refused, run
from support.peer_nodes import Member, agree, eventually, found, join, meet
from walytis_vault import AsyncClient, Client, ForgottenError, Node, VaultError, node
from walytis_vault.backup.restore import restore_backup
from walytis_vault.domain.errors import (
    ConflictError,
    LockedError,
    MisuseError,
    PermissionRefusedError,
    StorageError,
    TimedOutError,
    TransportError,
    WrongPassphraseError,
)
from walytis_vault.node import create_vault

PASSPHRASE = "correct horse"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fresh vault with a key file, that no node serves."""
    create_vault(tmp_path / "home", network="loopback")
    return tmp_path / "home"


def signing_keys(client: Client) -> list[dict[str, Any]]:
    """Key announcements so far."""
    last = client.status().position
    found = []
    for change in client.subscribe("events"):
        found += [change] if change.type == "key-announced/1" else []
        if change.position >= last:
            return found  # type: ignore[return-value]
    return []


def test_a_backup_taken_in_the_middle_of_work_is_whole(home: Path) -> None:
    """What was acknowledged before is served after the restore, under a new key; no plaintext is in the backup."""
    backup, secret, name = home.with_name("backup"), secrets.token_bytes(32), secrets.token_bytes(16).hex()
    stop = threading.Event()
    meanwhile: list[str] = []

    def disturb() -> None:
        with Client(home) as other:
            while not stop.is_set():
                meanwhile.append(other.publish(b"meanwhile %d" % len(meanwhile)).content_id)

    with Node.open(home), Client(home) as client:
        kept = {client.publish(secret * size, name=name).content_id: secret * size for size in (1, 100, 60_000)}
        disturber = threading.Thread(target=disturb)
        disturber.start()
        try:
            info = client.backup(backup, passphrase=PASSPHRASE)
        finally:
            stop.set()
            disturber.join(30)
        late = client.publish(b"after the first backup").content_id
        again = client.backup(backup, passphrase=PASSPHRASE)
        assert signing_keys(client)
        with pytest.raises(ConflictError, match="stop it first"):
            restore_backup(backup, home.with_name("beside"), passphrase=PASSPHRASE)
    assert info.contents >= len(kept)
    assert again.copied < again.size  # the large content was there already
    assert find_canaries(backup, {"content": secret, "name": bytes.fromhex(name)}) == []
    home.rename(home.with_name("lost"))
    restored = home.with_name("restored")
    done = json.loads(run(restored, "restore", str(backup), "--passphrase-file", str(_file(home)), "--json").stdout)
    assert (done["forgotten"], done["vault_id"]) == (0, info.vault_id)
    with Node.open(restored, passphrase=PASSPHRASE), Client(restored) as client:
        for content_id, data in kept.items():
            assert client.request(content_id) == data
        assert client.request(late) == b"after the first backup"
        assert client.request(meanwhile[-1]) == b"meanwhile %d" % (len(meanwhile) - 1)
        assert client.request(client.publish(b"new").content_id) == b"new"
        assert len(signing_keys(client)) == 2
        report = client.audit(read_data=True)
        assert (report["ok"], report["forks"], report["certificates"]["valid"]) == (True, [], 2), report["findings"]
    assert not (restored / "restored.json").exists()


def _file(home: Path) -> Path:
    path = home.with_name("passphrase")
    path.write_text(PASSPHRASE)
    return path


def test_what_was_forgotten_after_the_backup_does_not_come_back(home: Path) -> None:
    """The backup is told; the restored node does not serve it, and nothing of it is left in its home once it opened."""
    backup = home.with_name("backup")
    secret, large, name = secrets.token_bytes(32), secrets.token_bytes(2 << 20), secrets.token_bytes(16)
    with Node.open(home), Client(home) as client:
        first = client.publish(secret * 40, name=name.hex()).content_id
        second = client.publish(large, name=name.hex()).content_id
        other = client.publish(b"stays").content_id
        client.backup(backup, passphrase=PASSPHRASE)
        (pack,) = (home / "store" / "packs").iterdir()
        (blob,) = (home / "store" / "blobs").iterdir()
        canaries = {
            "content": secret,
            "name": name,
            "small ciphertext": pack.read_bytes()[100:164],
            "large ciphertext": blob.read_bytes()[1000:1064],
        }
        client.forget(first, second)
    restored, control = home.with_name("restored"), home.with_name("control")
    home.rename(home.with_name("lost"))
    # Positive control: without the list beside it, the backup does bring them back.
    told = (backup / "forgotten").read_bytes()
    (backup / "forgotten").unlink()
    restore_backup(backup, control, passphrase=PASSPHRASE)
    assert {hit.canary for hit in find_canaries(control, canaries)} == {"small ciphertext", "large ciphertext"}
    (backup / "forgotten").write_bytes(b"garbage\n" + told[:-10] + b"\n" + told)
    done = restore_backup(backup, restored, passphrase=PASSPHRASE)
    assert done.forgotten == 2
    with Node.open(restored, passphrase=PASSPHRASE), Client(restored) as client:
        for content_id in (first, second):
            with pytest.raises(ForgottenError):
                client.request(content_id)
        assert client.request(other) == b"stays"
        assert client.audit(read_data=True)["ok"]
    assert find_canaries(restored, canaries) == []


@pytest.mark.long
def test_the_original_home_tells_what_a_backup_out_of_reach_was_not_told(home: Path) -> None:
    """The backup was away when the content was forgotten; the home that forgot it is still there."""
    backup, away = home.with_name("backup"), home.with_name("away")
    with Node.open(home), Client(home) as client:
        content_id = client.publish(b"x" * 100).content_id
        client.backup(backup, with_key_file=True)
        backup.rename(away)
        client.forget(content_id)
    assert restore_backup(away, home.with_name("restored")).forgotten == 1
    away.rename(backup)  # and after the next start the list says so too
    with Node.open(home), Client(home):
        eventually(lambda: content_id.encode() in (backup / "forgotten").read_bytes(), "the backup is told")


@pytest.mark.long
def test_what_a_backup_is_sealed_with(home: Path) -> None:
    """A key file goes along when asked for only; a wrong or missing passphrase opens nothing and leaves nothing."""
    backup, restored = home.with_name("backup"), home.with_name("restored")
    with Node.open(home), Client(home) as client:
        for bad in (home / "inside", home.parent):
            with pytest.raises(MisuseError):
                client.backup(bad, passphrase=PASSPHRASE)
        with pytest.raises(MisuseError, match="key file"):
            client.backup(backup)
        assert "no complete backup" in refused(restored, "restore", str(backup))

        async def take() -> None:
            async with AsyncClient(home) as other:
                await other.backup(backup, passphrase=PASSPHRASE)

        asyncio.run(take())
        assert not list(backup.rglob("vault.key"))
        assert json.loads(run(home, "backup", str(home.with_name("open")), "--with-key-file", "--json").stdout)["files"]
    (key_file,) = home.with_name("open").rglob("vault.key")
    for passphrase, error in ((None, LockedError), ("wrong", WrongPassphraseError)):
        with pytest.raises(error):
            restore_backup(backup, restored, passphrase=passphrase)
    assert not restored.exists()
    opened = home.with_name("open")
    of_each = {p.relative_to(opened).parts[1:3]: p for p in opened.rglob("*") if p.is_file() and p.stat().st_size}
    assert len(of_each) > 8
    for path in of_each.values():  # any file that is damaged or missing is noticed
        if path == key_file or path.name == "forgotten":
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises((StorageError, WrongPassphraseError)):
            restore_backup(opened, restored)
        path.unlink()
        with pytest.raises((StorageError, MisuseError)):
            restore_backup(opened, restored)
        path.write_bytes(whole)
        assert not [p for p in restored.rglob("*") if p.name != "node.lock"]
    restore_backup(backup, restored, passphrase=PASSPHRASE)
    assert "already holds a vault" in refused(restored, "restore", str(backup), "--passphrase-file", str(_file(home)))


POINTS = ("backup.after_log", "backup.after_picture", "backup.before_manifest", "backup.after_manifest")


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_a_backup_that_was_killed_is_not_taken_for_one(home: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Killed at any step: there is no backup, or the one before is still good; the next one puts it right."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.setattr(node, "CHILD_MODULE", "support.faulty_process")
    backup = home.with_name("backup")

    def die() -> None:
        monkeypatch.setenv("VAULT_TEST_FAULT", f"{point}:1")
        with Node.open(home) as running, Client(home, timeout=3.0) as client:
            with contextlib.suppress(VaultError):
                client.backup(backup, passphrase=PASSPHRASE, timeout=3.0)
            eventually(lambda: not running.running, "the node dies in the middle of it", patience=60)
        monkeypatch.delenv("VAULT_TEST_FAULT")

    with Node.open(home), Client(home) as client:
        first = client.publish(b"one").content_id
    die()
    done = point == "backup.after_manifest"
    if not done:
        with pytest.raises(MisuseError, match="no complete backup"):
            restore_backup(backup, home.with_name("r0"), passphrase=PASSPHRASE)
    with Node.open(home), Client(home) as client:
        client.backup(backup, passphrase=PASSPHRASE)
        second = client.publish(b"two").content_id
    die()
    assert restore_backup(backup, home.with_name("r1"), passphrase=PASSPHRASE).contents == (2 if done else 1)
    with Node.open(home), Client(home) as client:
        client.backup(backup, passphrase=PASSPHRASE)
    assert len([p for p in backup.iterdir() if p.name.startswith("data-")]) == 1
    home.rename(home.with_name("lost"))
    restored = home.with_name("r2")
    restore_backup(backup, restored, passphrase=PASSPHRASE)
    with Node.open(restored, passphrase=PASSPHRASE), Client(restored) as client:
        assert (client.request(first), client.request(second)) == (b"one", b"two")


COMING_BACK = ("coming_back.after_hearing", "coming_back.after_forgetting", "coming_back.after_announcement")


@pytest.mark.long
@pytest.mark.parametrize("point", ["restore.after_copy", "restore.before_config", *COMING_BACK])
def test_a_restore_that_was_killed_is_made_good(home: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Killed while it is restored, or while its node comes back: there is no vault yet, or it comes back later."""
    tests = str(Path(__file__).parents[1])
    monkeypatch.syspath_prepend(tests)
    monkeypatch.setattr(node, "CHILD_MODULE", "support.faulty_process")
    backup, restored = home.with_name("backup"), home.with_name("restored")
    with Node.open(home), Client(home) as client:
        content_id = client.publish(b"kept").content_id
        client.backup(backup, with_key_file=True)
    home.rename(home.with_name("lost"))
    monkeypatch.setenv("VAULT_TEST_FAULT", f"{point}:1")
    if point in COMING_BACK:
        restore_backup(backup, restored)
        with pytest.raises(TransportError, match="ended"):
            Node.open(restored)
    else:
        program = (
            "import sys; from pathlib import Path; from support.faulty_process import plan; plan();"
            "from walytis_vault import restore_backup; restore_backup(Path(sys.argv[1]), Path(sys.argv[2]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(backup), str(restored)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=120,
            check=False,
        )
        assert done.returncode < 0
    monkeypatch.delenv("VAULT_TEST_FAULT")
    if point not in COMING_BACK:
        with pytest.raises(MisuseError, match="no vault"):
            Node.open(restored)
        restore_backup(backup, restored)
    with Node.open(restored), Client(restored) as client:
        assert client.request(content_id) == b"kept"
        assert client.request(client.publish(b"new").content_id) == b"new"
        report = client.audit(read_data=True)
        assert (report["ok"], report["forks"]) == (True, [])
        assert len(signing_keys(client)) == 2


@pytest.mark.long
def test_a_restored_member_hears_from_another_before_it_serves(tmp_path: Path) -> None:
    """It waits for a node that knows what was forgotten, takes up its numbers where it was, and fences off copies."""
    a = found(tmp_path / "a")
    b = join(tmp_path / "b", a)
    try:
        secret = a.client.publish(b"s" * 500, name="a secret").content_id
        eventually(lambda: (r := b.row(secret)) and r.state == "available", "it is fetched")
        b.client.backup(tmp_path / "backup", with_key_file=True)
        mine = b.client.publish(b"after the backup").content_id
        eventually(lambda: (r := a.row(mine)) and r.state == "available", "it is fetched")
        ballot = a.client.forget(secret).ballot_id
        eventually(lambda: b.ballot(ballot), "the ballot is known")
        b.client.consent(ballot)
        agree(a, b)
        did = b.did
        b.stop()
        a.stop()
        b.home.rename(tmp_path / "lost")
        (tmp_path / "backup" / "forgotten").unlink()
        for name in ("b", "copy"):
            restore_backup(tmp_path / "backup", tmp_path / name)
        with pytest.raises(TimedOutError, match="must hear from another member"):
            Node.open(tmp_path / "b")
        a.start()
        b = Member(tmp_path / "b").start()
        assert b.did == did
        with pytest.raises(ForgottenError):
            b.client.request(secret)
        meet(a, b)
        assert b.client.request(mine) == b"after the backup"
        new = b.client.publish(b"from the restored home").content_id
        eventually(lambda: (r := a.row(new)) and r.state == "available", "the others take what it writes")
        agree(a, b)
        report = a.client.audit()
        assert (report["ok"], report["forks"]) == (True, []), report["findings"]
        with pytest.raises(PermissionRefusedError, match="came back before"):
            Node.open(tmp_path / "copy")
    finally:
        b.stop()
        a.stop()
