"""Proof of forgetting on a real node: home, temporary folder, working directory and what clients had under way."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.canaries import Hit, encodings, find_canaries
from support.disk_keys import sealed_slots
from support.peer_nodes import eventually
from support.planned_process import Planned
from walytis_vault import Client, ForgottenError, Node, VaultError
from walytis_vault.node import create_vault

POINTS = [
    "erase.before_store",
    "forget.before_mark",
    "forget.after_mark",
    "forget.after_slot",
    "forget.after_overwrite",
    "forget.after_bytes",
    "forget.after_rows",
    "forget.after_checkpoint",
    "forget.after_tombstone",
    "erase.after_store",
]


LARGE_BYTES = 40 << 20
"""So much more than a client asks for ahead that a download is under way when it is forgotten."""


class Scene:
    """A machine in small: the vault's home, the temporary folder and the working directory of all its processes."""

    def __init__(self, folder: Path, outside: Path, planned: Planned, keys: dict[str, bytes]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.planned = planned
        self.keys = keys
        self.canaries: dict[str, bytes] = {}
        self.at_rest: dict[str, bytes] = {}
        self._outside = outside

    def plant(self, client: Client, *, large: int = 1_280_000, passphrase: str | None = None) -> list[str]:
        """Publish what must vanish: a small content, its revision, and a large one. Returns originals."""
        texts = {n: secrets.token_hex(16) for n in ("name", "label", "note", "revision's name", "large one's name")}
        data = {n: secrets.token_bytes(32) for n in ("content", "revision", "large")}
        self.canaries = {**{n: t.encode() for n, t in texts.items()}, **data, **self.keys}
        small = client.publish(
            data["content"] * 30, name=texts["name"], labels=(texts["label"],), note=texts["note"]
        ).content_id
        client.publish(data["revision"] * 40, name=texts["revision's name"], revises=small)
        source = self.folder / "source"
        source.write_bytes(data["large"] * (large // 32))
        whole = client.publish(source, name=texts["large one's name"], request_id=secrets.token_bytes(16)).content_id
        source.unlink()
        assert client.query("catalogue", text=texts["label"])
        (pack,) = (self.home / "store" / "packs").iterdir()
        with (self.home / "store" / "blobs" / f"{whole}.blob").open("rb") as blob:
            start = blob.read(5032)
        self.at_rest = {
            "small ciphertext": pack.read_bytes()[60:92],
            "revision's ciphertext": pack.read_bytes()[-48:-16],
            "large ciphertext": start[5000:],
        }
        slots = {slot.key: slot.sealed for slot in sealed_slots(self.home, self._outside / "copy", passphrase)}
        self.at_rest |= {f"sealed {name}": slots[key] for name, key in self.keys.items()}
        return [small, whole]

    def scan(self) -> list[Hit]:
        """Every canary in every file of the scene."""
        return find_canaries(self.folder, self.canaries | self.at_rest)

    def positive_control(self) -> None:
        """The scan sees what is there: ciphertext and sealed keys, and plaintext wherever somebody would leave it."""
        assert {hit.canary for hit in self.scan()} == set(self.at_rest)
        planted = [self.folder / place / "planted" for place in ("home", "tmp", "cwd")]
        name = {"name": self.canaries["name"]}
        ways = dict(encodings(name["name"]))
        for file in planted:
            file.write_bytes(b" ... ".join(ways.values()))
            assert {hit.encoding for hit in find_canaries(file.parent, name) if hit.path == "planted"} == set(ways)
            file.unlink()


@pytest.fixture
def scene(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Node, client and test share one temporary folder and one working directory, both inside what is scanned."""
    for name in ("tmp", "cwd"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "cwd")
    outside = tmp_path_factory.mktemp("outside")
    keys = {name: secrets.token_bytes(32) for name in ("key", "revision's key", "large one's key")}
    return Scene(tmp_path, outside, Planned(monkeypatch, outside, *keys.values()), keys)


def packs(scene: Scene) -> set[str]:
    """The names of the pack files."""
    return {path.name for path in (scene.home / "store" / "packs").iterdir()}


def test_forgotten_with_everything_that_was_under_way(scene: Scene) -> None:
    """Sealed, nothing shows before; after a forget with a download under way, a restart and a compaction, no trace."""
    with Node.create(scene.home, passphrase="p") as running, Client(scene.home) as client:
        originals = scene.plant(client, large=LARGE_BYTES, passphrase="p")
        scene.positive_control()
        stays, goes = client.publish(b"stays" * 100).content_id, client.publish(b"goes later").content_id
        watching = client.subscribe("catalogue")
        assert watching.next(20) is not None
        forgotten = threading.Event()

        def forget_meanwhile(_done: int, _total: int | None) -> None:
            if not forgotten.is_set():
                forgotten.set()
                with Client(scene.home) as other:
                    assert other.forget(*originals, reason=scene.canaries["note"].decode()).state == "carried"

        with pytest.raises(ForgottenError):
            client.request(originals[1], to=scene.folder / "cwd" / "download", progress=forget_meanwhile)
        assert forgotten.is_set()
        assert list((scene.folder / "cwd").iterdir()) == []
        assert scene.scan() == []
        with pytest.raises(ForgottenError):
            client.request(originals[0])
        running.kill()
    assert scene.scan() == []
    with Node.open(scene.home, passphrase="p"), Client(scene.home) as client:
        assert client.audit(read_data=True)["ok"]
        assert scene.scan() == []
        before = packs(scene)
        assert client.forget(goes).state == "carried"
        assert not before & packs(scene), "most of the pack was waste, so that what stays moved to another one"
        assert client.request(stays) == b"stays" * 100
        assert scene.scan() == []
    assert scene.scan() == []


def test_a_client_that_is_killed_while_it_downloads_leaves_nothing(scene: Scene) -> None:
    """Nothing of the content is in its folder, nor anywhere, once it is forgotten."""
    with Node.create(scene.home), Client(scene.home) as client:
        originals = scene.plant(client)
        scene.positive_control()
        download = (
            "import os, signal, sys; from pathlib import Path; from walytis_vault import Client\n"
            "kill = lambda done, total: done > 300_000 and os.kill(os.getpid(), signal.SIGKILL)\n"
            "Client(sys.argv[1]).request(sys.argv[2], to=Path('download'), progress=kill)\n"
        )
        killed = subprocess.run(
            [sys.executable, "-c", download, str(scene.home), originals[1]], timeout=60, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert client.forget(*originals).state == "carried"
        assert scene.scan() == []
        assert os.listdir(scene.folder / "cwd") == []


def test_expired_contents_leave_nothing(scene: Scene) -> None:
    """At its time a content goes with no ballot, and nothing of it stays on the disk."""
    with Node.create(scene.home) as _, Client(scene.home) as client:
        secret, name = secrets.token_bytes(32), secrets.token_hex(16)
        expired = client.publish(secret * 30, name=name, expires=dt.timedelta(hours=1))
        (pack,) = (scene.home / "store" / "packs").iterdir()
        scene.canaries = {"content": secret, "name": name.encode(), "key": scene.keys["key"]}
        scene.at_rest = {"ciphertext": pack.read_bytes()[60:92]}
        scene.positive_control()
        scene.planned.set_ahead(dt.timedelta(hours=2))
        client.publish(b"whatever is new makes the node look at the clock")
        for change in client.subscribe("events", after=expired.position):
            if change.type == "content-erased/1" and expired.content_id in change.ids:
                break
        assert scene.scan() == []
        assert client.query("ballots") == []
    assert scene.scan() == []


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step(scene: Scene, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Killed at each step of forgetting: after the restart, and after another one, nothing is left anywhere."""
    create_vault(scene.home, network="loopback")
    monkeypatch.setenv("VAULT_TEST_FAULT", f"{point}:1")
    with Node.open(scene.home) as running, Client(scene.home, timeout=5.0) as client:
        originals = scene.plant(client)
        scene.positive_control()
        with contextlib.suppress(VaultError):
            client.forget(*originals)
        eventually(lambda: not running.running, "the node dies at the fault point")
    monkeypatch.delenv("VAULT_TEST_FAULT")
    with Node.open(scene.home), Client(scene.home) as client:
        eventually(
            lambda: [b.receipts for b in client.query("ballots")] and all(b.receipts for b in client.query("ballots")),
            "the forgetting is finished and receipted",
        )
        assert scene.scan() == []
        assert client.audit(read_data=True)["ok"]
    assert scene.scan() == []
    assert {p.name for p in scene.folder.iterdir()} == {"home", "tmp", "cwd"}
    assert os.listdir(scene.folder / "cwd") == []
