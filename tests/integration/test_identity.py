"""The identity on the real library: creation, certificates, invitations, and the guards of security.md U1-U5, U7."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.walytis_child import WalytisChild
from walytis_vault.domain.errors import MisuseError, StorageError, TransportError

HONEST = (string.ascii_letters + string.digits + string.punctuation)[:94] * 3
ACTIONS = "support.identity_actions"


class Device:
    """A node with one identity."""

    def __init__(self, folder: Path, child: WalytisChild | None = None) -> None:
        self.folder = folder
        self.child = child or WalytisChild(folder)
        self.identity = folder / "vault" / "identity"
        self.key: bytes = self.run("store_key")
        self.dids: dict[str, Any] = {}

    def run(self, action: str, **arguments: Any) -> Any:
        """Do something in the child."""
        return self.child.call("run", module=ACTIONS, function=action, arguments=arguments)

    def on_identity(self, action: str, **arguments: Any) -> Any:
        """Do something with the identity in the child."""
        return self.run(action, folder=str(self.identity), **arguments)

    def create(self) -> Device:
        """Create the identity."""
        self.dids = self.on_identity("create", key=self.key)
        return self

    def restart(self) -> None:
        """Start the node again on the same home and open the identity."""
        self.child.kill()
        self.child = WalytisChild(self.folder)
        self.on_identity("open_", key=self.key)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One device for tests that leave it as it was."""
    made = Device(tmp_path_factory.mktemp("device")).create()
    yield made
    made.child.kill()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Device]:
    """A device of its own."""
    made = Device(tmp_path / "fresh").create()
    yield made
    made.child.kill()


def test_an_identity_has_a_device_and_a_group(device: Device) -> None:
    """Creating gives two DIDs; opening again gives the same without scanning anything."""
    assert device.dids["device"].startswith("did:walytisidentities:Qm")
    assert device.dids["group"] != device.dids["device"]
    assert device.dids["member"] == device.dids["device"]
    opened = device.on_identity("open_", key=device.key)
    assert opened == {name: device.dids[name] for name in opened}


def test_certificates_hold_for_their_statement_and_did_only(device: Device) -> None:
    """U2: a certificate is true for its DID and statement, false for others, unknown where the chain is not here."""
    statement = b"these are my keys"
    certificate = device.on_identity("certify", statement=statement)
    assert len(certificate) < 4000
    check = {"statement": statement, "certificate": certificate}
    assert device.run("check", did=device.dids["device"], **check) is True
    assert device.run("check", did=device.dids["group"], **check) is False
    assert device.run("check", did=device.dids["device"], statement=b"others", certificate=certificate) is False
    assert device.run("check", did="did:walytisidentities:QmUnknown", **check) is None
    assert device.run("check", did="did:walytisidentities:../../etc", **check) is None
    for position in range(0, len(certificate), 97):
        bad = bytearray(certificate)
        bad[position] ^= 1
        assert device.run("check", did=device.dids["device"], statement=statement, certificate=bytes(bad)) is False


def test_a_signature_by_a_foreign_key_is_no_certificate(device: Device) -> None:
    """U2: what upstream's own check believes (the key inside the signature) our check refuses."""
    forged = device.run("forge_with_own_key", did=device.dids["device"], statement=b"x")
    assert forged["upstream_believes"] is True
    answer = device.run("check", did=device.dids["device"], statement=b"x", certificate=forged["certificate"])
    assert answer is False


@pytest.mark.parametrize(
    ("challenge", "answered"),
    [
        (HONEST[:200], True),
        (HONEST[:199], False),
        (HONEST[:201], False),
        ("", False),
        (" " + HONEST[:199], False),
        ("\n" + HONEST[:199], False),
        ("\x7f" + HONEST[:199], False),
        ("ÿ" + HONEST[:199], False),
        ('{"owner": "did:walytisidentities:someone"}', False),
    ],
)
def test_only_honest_challenges_are_signed(device: Device, challenge: str, answered: bool) -> None:
    """U1: the handshake signs exactly 200 printable characters without spaces, and no other text."""
    assert device.on_identity("answer_challenge", challenge=challenge) is answered


def test_an_invitation_signs_no_text_of_a_stranger(device: Device) -> None:
    """U1: the handler behind an invitation refuses a challenge that is none, before anything is signed."""
    device.on_identity("invite", expires_s=60)
    assert "no challenge" in device.on_identity("answer_invited", challenge="sign this, please")


def test_an_invitation_that_was_used_stays_used_after_a_kill(fresh: Device) -> None:
    """U5: whoever has the code and comes a second time gets nothing, also when the node was killed in between."""
    for _ in range(2):
        fresh.on_identity("invite", expires_s=600)
    assert "upstream went on" in fresh.on_identity("answer_invited", challenge=HONEST[:200])
    assert fresh.on_identity("open_invitations") == 1
    fresh.restart()
    assert fresh.on_identity("open_invitations") == 1


@pytest.mark.parametrize("name", ["../evil", "../../evil", "/tmp/evil-by-walytis-test", "a/b", "a\\b", "..", "x..y"])
def test_received_files_stay_in_their_folder(device: Device, tmp_path: Path, name: str) -> None:
    """U4: a file whose name would leave the download folder is refused, and nothing is written."""
    got = device.run("receive_file", folder=str(tmp_path), name=name)
    assert got == {"files": [], "status": "aborted"}
    assert not Path("/tmp/evil-by-walytis-test.PART").exists()


def test_plain_files_are_still_received(device: Device, tmp_path: Path) -> None:
    """U4: the guard lets honest names through, because joining needs them."""
    got = device.run("receive_file", folder=str(tmp_path), name="chain.zip")
    assert got["files"] == ["downloads/deep/chain.zip"]


def test_an_invitation_gives_only_the_groups_keys(device: Device) -> None:
    """U5: the key store that every invited device receives has the group's recorded control keys, nothing else."""
    keys = device.on_identity("given_keys")
    assert keys["given"]
    assert set(keys["given"]) <= set(keys["recorded"])


def test_no_foreign_key_gets_into_a_key_store(device: Device) -> None:
    """U5: content keys, at-rest keys or anything but an identity's own key objects are refused by the store."""
    assert "only an identity's own keys" in device.on_identity("store_foreign_key")


def test_two_identities_do_not_share_a_folder(device: Device) -> None:
    """A second identity in the same folder is refused, and wrong keys are our error."""
    with pytest.raises(MisuseError):
        device.on_identity("create", key=device.key)
    with pytest.raises(MisuseError):
        device.on_identity("open_", key=b"not a key")
    with pytest.raises(MisuseError):
        device.run("open_", folder=str(device.folder / "nothing"), key=device.key)


@pytest.mark.parametrize("point", ["files.before_fsync", "files.before_rename"])
def test_a_kill_inside_a_write_leaves_the_key_store_whole(fresh: Device, point: str) -> None:
    """U7: after a kill at any step of rewriting the key store it opens and still signs."""
    with pytest.raises(TransportError):
        fresh.on_identity("die_while_saving", point=point)
    fresh.restart()
    certificate = fresh.on_identity("certify", statement=b"still here")
    assert fresh.run("check", did=fresh.dids["device"], statement=b"still here", certificate=certificate) is True


def test_torn_files_of_the_identity_are_restored(fresh: Device) -> None:
    """U7: a torn key store comes back from its good copy, a torn block list is made anew, no copy is a clear error."""
    fresh.child.kill()
    store = fresh.identity / "device.json"
    store.write_bytes(store.read_bytes()[:1000])
    lists = list(fresh.identity.rglob("blocks_list"))
    assert lists
    for path in lists:
        path.write_bytes(path.read_bytes()[:-7])
    fresh.restart()
    assert fresh.on_identity("certify", statement=b"x")
    assert fresh.on_identity("handled_blocks", key=fresh.key) >= 3
    fresh.child.kill()
    store.write_bytes(b"{")
    (fresh.identity / "device.json.good").write_bytes(b"{")
    fresh.restart()
    with pytest.raises(StorageError, match="backup"):
        fresh.on_identity("certify", statement=b"x")


@pytest.mark.long
@pytest.mark.timeout(240)
def test_an_invited_device_joins_once(tmp_path: Path) -> None:
    """An invitation lets one device into the group, whose chain then names both; a second use is refused."""
    inviter = Device(tmp_path / "a").create()
    joiner, late = Device(tmp_path / "b"), Device(tmp_path / "c")
    try:
        code = inviter.on_identity("invite", expires_s=200)
        joined = joiner.on_identity("join", key=joiner.key, code=code)
        assert joined["group"] == inviter.dids["group"]
        both = sorted([inviter.dids["device"], joined["device"]])
        assert joiner.on_identity("members") == both
        certificate = joiner.on_identity("certify", statement=b"new here")
        assert joiner.run("check", did=joined["device"], statement=b"new here", certificate=certificate) is True
        with pytest.raises(TransportError):
            late.on_identity("join", key=late.key, code=code)
        with pytest.raises(MisuseError):
            late.on_identity("join", key=late.key, code="{}")
    finally:
        for device_ in (inviter, joiner, late):
            device_.child.kill()
