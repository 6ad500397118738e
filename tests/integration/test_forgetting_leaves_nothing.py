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
from support.peer_nodes import eventually
from walytis_vault import Client, ForgottenError, Node, VaultError, node
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


class Scene:
    """A machine in small: the vault's home, the temporary folder and the working directory of all its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.canaries: dict[str, bytes] = {}
        self.at_rest: dict[str, bytes] = {}

    def plant(self, client: Client) -> list[str]:
        """Publish what must vanish: a small content, its revision, and a large one. Returns originals."""
        texts = {n: secrets.token_hex(16) for n in ("name", "label", "note", "revision's name", "large one's name")}
        data = {n: secrets.token_bytes(32) for n in ("content", "revision", "large")}
        self.canaries = {**{n: t.encode() for n, t in texts.items()}, **data}
        small = client.publish(
            data["content"] * 30, name=texts["name"], labels=(texts["label"],), note=texts["note"]
        ).content_id
        client.publish(data["revision"] * 40, name=texts["revision's name"], revises=small)
        large = self.folder / "source"
        large.write_bytes(data["large"] * 40_000)
        whole = client.publish(large, name=texts["large one's name"], request_id=secrets.token_bytes(16)).content_id
        large.unlink()
        assert client.query("catalogue", text=texts["label"])
        (pack,) = (self.home / "store" / "packs").iterdir()
        self.at_rest = {
            "small ciphertext": pack.read_bytes()[60:92],
            "revision's ciphertext": pack.read_bytes()[-48:-16],
            "large ciphertext": (self.home / "store" / "blobs" / f"{whole}.blob").read_bytes()[5000:5032],
        }
        return [small, whole]

    def scan(self) -> list[Hit]:
        """Every canary in every file of the scene."""
        return find_canaries(self.folder, self.canaries | self.at_rest)

    def positive_control(self) -> None:
        """The scan sees what is there: ciphertext in the home, and plaintext wherever somebody would leave it."""
        assert {hit.canary for hit in self.scan()} == set(self.at_rest)
        planted = [self.folder / place / "planted" for place in ("home", "tmp", "cwd")]
        name = {"name": self.canaries["name"]}
        ways = dict(encodings(name["name"]))
        for file in planted:
            file.write_bytes(b" ... ".join(ways.values()))
            assert {hit.encoding for hit in find_canaries(file.parent, name) if hit.path == "planted"} == set(ways)
            file.unlink()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Node, client and test share one temporary folder and one working directory, both inside what is scanned."""
    for name in ("tmp", "cwd"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.setattr(node, "CHILD_MODULE", "support.faulty_process")
    return Scene(tmp_path)


def test_forgotten_with_everything_that_was_under_way(scene: Scene) -> None:
    """A sealed vault shows nothing before; after a forget with a download under way, a restart, nothing is left."""
    with Node.create(scene.home, passphrase="p") as running, Client(scene.home) as client:
        originals = scene.plant(client)
        scene.positive_control()
        watching = client.subscribe("catalogue")
        assert watching.next(20) is not None
        forgotten = threading.Event()

        def forget_meanwhile(_done: int, _total: int | None) -> None:
            if not forgotten.is_set():
                forgotten.set()
                with Client(scene.home) as other:
                    assert other.forget(*originals, reason=scene.canaries["note"].decode()).state == "carried"

        target = scene.folder / "cwd" / "download"
        with contextlib.suppress(ForgottenError):
            # What had come may be the whole of it; then it is the reader's own copy.
            client.request(originals[1], to=target, progress=forget_meanwhile)
            target.unlink()
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
        scene.canaries = {"content": secret, "name": name.encode()}
        expired = client.publish(secret * 30, name=name, expires=dt.timedelta(seconds=3))
        (pack,) = (scene.home / "store" / "packs").iterdir()
        scene.at_rest = {"ciphertext": pack.read_bytes()[60:92]}
        scene.positive_control()
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
