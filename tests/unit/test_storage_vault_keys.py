"""Keys at rest: passphrase or key file, change of passphrase, lock and unlock, and the node's own secrets."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from support.canaries import find_canaries
from support.faulty_files import FaultPlan, FaultyFileSystem
from walytis_vault.adapters.crypto import passphrase as passphrase_module
from walytis_vault.adapters.crypto.passphrase import Argon2Parameters, key_from_passphrase
from walytis_vault.adapters.storage import vault_keys
from walytis_vault.adapters.storage.secrets_file import MAX_SECRETS, SecretsFile
from walytis_vault.adapters.storage.vault_keys import MasterFile, VaultKeys
from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.domain.errors import (
    ConflictError,
    LockedError,
    MisuseError,
    StorageError,
    StorageFullError,
    UntrustedInputError,
    WrongPassphraseError,
)

FS = OsFileSystem()


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_keys_open_again(tmp_path: Path, passphrase: str | None) -> None:
    """The same master key comes back, with a passphrase as with a key file."""
    made = VaultKeys.create(tmp_path / "keys", FS, passphrase)
    again = VaultKeys.open(tmp_path / "keys", FS, passphrase)
    assert again.subkey(b"use") == made.subkey(b"use")
    assert again.subkey(b"use") != again.subkey(b"other use")
    assert VaultKeys.needs_passphrase(tmp_path / "keys", FS) == (passphrase is not None)
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    with pytest.raises(ConflictError):
        VaultKeys.create(tmp_path / "keys", FS, passphrase)


def test_the_wrong_passphrase_is_told_as_such(tmp_path: Path) -> None:
    """Wrong, empty and missing passphrases, and one for a key-file vault, are different from damage."""
    VaultKeys.create(tmp_path / "p", FS, "right")
    VaultKeys.create(tmp_path / "f", FS, None)
    for wrong in ("wrong", "", "Right", "x" * 5000):
        with pytest.raises(WrongPassphraseError):
            VaultKeys.open(tmp_path / "p", FS, wrong)
    with pytest.raises(LockedError):
        VaultKeys.open(tmp_path / "p", FS, None)
    with pytest.raises(WrongPassphraseError):
        VaultKeys.open(tmp_path / "f", FS, "right")
    with pytest.raises(StorageError):
        VaultKeys.open(tmp_path / "nothing", FS, None)


def test_equal_passphrases_from_different_keyboards_agree(tmp_path: Path) -> None:
    """Composed and decomposed letters are the same passphrase."""
    made = VaultKeys.create(tmp_path, FS, "caf\u00e9")
    assert VaultKeys.open(tmp_path, FS, "cafe\u0301").subkey(b"x") == made.subkey(b"x")


def test_a_wrong_key_file_is_told_as_such(tmp_path: Path) -> None:
    """A key file that is missing, cut, another vault's, or readable by others is named."""
    VaultKeys.create(tmp_path, FS, None)
    key_file = tmp_path / "vault.key"
    right = key_file.read_bytes()
    for wrong in (bytes(32), right[:-1], b""):
        key_file.write_bytes(wrong)
        with pytest.raises(WrongPassphraseError):
            VaultKeys.open(tmp_path, FS, None)
    key_file.write_bytes(right)
    key_file.chmod(0o644)
    with pytest.raises(StorageError, match="chmod"):
        VaultKeys.open(tmp_path, FS, None)
    key_file.unlink()
    with pytest.raises(WrongPassphraseError, match="missing"):
        VaultKeys.open(tmp_path, FS, None)


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("a", None), (None, "b"), (None, None)])
def test_changing_the_passphrase_keeps_the_keys(tmp_path: Path, old: str | None, new: str | None) -> None:
    """The new way opens the same keys, the old one does not, and no trace of the old wrapping stays."""
    made = VaultKeys.create(tmp_path, FS, old)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    made.change_passphrase(old, new)
    assert VaultKeys.open(tmp_path, FS, new).subkey(b"x") == made.subkey(b"x")
    if old != new:
        with pytest.raises((WrongPassphraseError, LockedError)):
            VaultKeys.open(tmp_path, FS, old)
        assert not find_canaries(tmp_path, {"old wrapping": before["master.sealed"][-40:]})
    with pytest.raises((WrongPassphraseError, LockedError)):
        made.change_passphrase("never it", "c")
    assert VaultKeys.open(tmp_path, FS, new).subkey(b"x") == made.subkey(b"x")


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("a", None), (None, "b")])
def test_a_change_of_passphrase_that_fails_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None, new: str | None
) -> None:
    """Whichever call fails, the old or the new way opens the vault, and repeating the change finishes it."""
    # Stretching is not what is tested, and would take minutes here.
    monkeypatch.setattr(vault_keys, "key_from_passphrase", lambda text, _: hashlib.sha256(text.encode()).digest())
    plan = FaultPlan()
    number, failed = 0, True
    while failed:
        folder = tmp_path / str(number)
        plan.count_only()
        keys = VaultKeys.create(folder, FaultyFileSystem(plan), old)
        plan.fail_call(number, errno.EIO)
        with contextlib.suppress(StorageError):
            keys.change_passphrase(old, new)
        failed = bool(plan.failed)
        plan.count_only()
        # Before anything is opened again, which would tidy up: what a thief would find.
        assert not list(folder.glob("*.tmp"))
        opened = [way for way in (old, new) if opens(folder, way, tidy=False)]
        assert len(opened) == 1
        if opened == [old] and old is not None:
            assert not (folder / "vault.key").exists()
        keys.change_passphrase(old, new)
        keys.change_passphrase(old, new)
        assert VaultKeys.open(folder, FS, new).subkey(b"x") == keys.subkey(b"x")
        assert not opens(folder, old)
        assert (folder / "vault.key").exists() == (new is None)
        number += 1
    assert number > 5


def opens(folder: Path, passphrase: str | None, *, tidy: bool = True) -> bool:
    try:
        if tidy:
            VaultKeys.open(folder, FS, passphrase)
        else:
            vault_keys._load_master(folder, FS, passphrase)
    except (WrongPassphraseError, LockedError):
        return False
    return True


def test_a_key_file_that_a_crash_left_goes_with_the_next_start(tmp_path: Path) -> None:
    """A vault that got a passphrase keeps no key file, however the change ended."""
    VaultKeys.create(tmp_path, FS, None)
    left = (tmp_path / "vault.key").read_bytes()
    VaultKeys.open(tmp_path, FS, None).change_passphrase(None, "p")
    (tmp_path / "vault.key").write_bytes(left)
    (tmp_path / "vault.key").chmod(0o600)
    VaultKeys.open(tmp_path, FS, "p")
    assert not find_canaries(tmp_path, {"key file": left})


def test_what_a_crash_left_half_written_goes_with_the_next_start(tmp_path: Path) -> None:
    """A change that was killed before its rename leaves no second wrapping of the master key for good."""
    made = VaultKeys.create(tmp_path, FS, "p")
    other = VaultKeys(tmp_path / "other", FS, made.subkey(b"x"))
    (tmp_path / "other").mkdir()
    other.seal_copy(tmp_path / "other", "attempted", with_key_file=False)
    left = (tmp_path / "other" / "master.sealed").read_bytes()
    (tmp_path / "other" / "master.sealed").rename(tmp_path / "master.sealed.tmp")
    assert find_canaries(tmp_path, {"wrapping": left[-40:]})
    with pytest.raises(WrongPassphraseError):
        VaultKeys.open(tmp_path, FS, "q")
    VaultKeys.open(tmp_path, FS, "p")
    assert not find_canaries(tmp_path, {"wrapping": left[-40:]})
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("error", [MemoryError("m"), UnsupportedAlgorithm("a")])
def test_a_machine_that_cannot_stretch_is_no_wrong_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Too little memory, or no Argon2id, is told as what it is, and changes nothing."""

    class Unable:
        def __init__(self, **_: object) -> None:
            raise error

    keys = VaultKeys.create(tmp_path, FS, "p")
    with monkeypatch.context() as patch:
        patch.setattr(passphrase_module, "Argon2id", Unable)
        for attempt in (lambda: VaultKeys.open(tmp_path, FS, "p"), lambda: keys.change_passphrase("p", "q")):
            with pytest.raises(StorageError, match=r"memory|Argon2id"):
                attempt()
    assert opens(tmp_path, "p")


BOUNDS = [("memory_kib", 64 << 10, 1 << 20), ("iterations", 3, 32), ("lanes", 1, 16)]


@pytest.mark.parametrize(("field", "floor", "ceiling"), BOUNDS)
def test_floor_and_ceiling_are_exact(field: str, floor: int, ceiling: int) -> None:
    """Argon2id's parameters are taken at floor and ceiling, and refused one beyond."""
    for value in (floor, ceiling):
        Argon2Parameters(salt=bytes(32), **{field: value}).check()
    for value in (floor - 1, ceiling + 1):
        with pytest.raises(UntrustedInputError):
            Argon2Parameters(salt=bytes(32), **{field: value}).check()
    assert len(key_from_passphrase("p", Argon2Parameters(salt=bytes(32), memory_kib=64 << 10, lanes=1))) == 32


def test_lock_and_unlock(tmp_path: Path) -> None:
    """A locked vault answers LockedError until the passphrase comes again; a wrong one leaves it locked."""
    keys = VaultKeys.create(tmp_path, FS, "p")
    use = keys.subkey(b"x")
    sealed = keys.sealer(b"x").seal(b"secret")
    keys.lock()
    assert keys.locked
    for attempt in (keys.check_unlocked, lambda: keys.subkey(b"x"), lambda: keys.sealer(b"x")):
        with pytest.raises(LockedError):
            attempt()
    with pytest.raises(WrongPassphraseError):
        keys.unlock("q")
    assert keys.locked
    keys.unlock("p")
    assert keys.subkey(b"x") == use
    assert keys.sealer(b"x").open(sealed) == b"secret"


@pytest.mark.parametrize(
    "parameters",
    [
        {"memory_kib": 1024},
        {"memory_kib": 1 << 30},
        {"iterations": 1},
        {"iterations": 10_000},
        {"lanes": 0},
        {"lanes": 1000},
    ],
)
def test_weak_and_greedy_parameters_are_refused(tmp_path: Path, parameters: dict[str, int]) -> None:
    """A key file that was made weaker, or that wants all our memory, is refused before Argon2 starts."""
    bad = Argon2Parameters(salt=bytes(32), **parameters)
    with pytest.raises(UntrustedInputError):
        key_from_passphrase("p", bad)
    VaultKeys.create(tmp_path, FS, "p")
    path = tmp_path / "master.sealed"
    found = msgspec.msgpack.decode(path.read_bytes(), type=MasterFile)
    path.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(found, argon2=bad)))
    with pytest.raises(StorageError):
        VaultKeys.open(tmp_path, FS, "p")


def test_a_damaged_master_file_gives_our_error(tmp_path: Path) -> None:
    """Cuts and flipped bytes of the master file never open it and never raise anything else."""
    VaultKeys.create(tmp_path, FS, None)
    path = tmp_path / "master.sealed"
    good = path.read_bytes()
    for i in range(len(good)):
        for bad in (good[:i], good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]):
            path.write_bytes(bad)
            with pytest.raises((StorageError, WrongPassphraseError)):
                VaultKeys.open(tmp_path, FS, None)
    path.write_bytes(bytes(100_000))
    with pytest.raises(StorageError):
        VaultKeys.open(tmp_path, FS, None)


def test_secrets_come_back_sealed(tmp_path: Path) -> None:
    """The node's secrets survive, are nowhere readable, and stay the last ones that were sealed."""
    keys = VaultKeys.create(tmp_path, FS, None)
    secrets = SecretsFile(tmp_path, keys, FS)
    assert secrets.open_secrets() == {}
    canary = os.urandom(32)
    secrets.seal_secrets({"signing": canary, "curve": b"x"})
    secrets.seal_secrets({"signing": canary, "curve": b"y"})
    assert SecretsFile(tmp_path, VaultKeys.open(tmp_path, FS, None), FS).open_secrets() == {
        "signing": canary,
        "curve": b"y",
    }
    assert not find_canaries(tmp_path, {"signing": canary})
    with pytest.raises(MisuseError):
        secrets.seal_secrets({"big": bytes(MAX_SECRETS)})
    keys.lock()
    with pytest.raises(LockedError):
        secrets.open_secrets()


def test_damaged_or_foreign_secrets_are_refused(tmp_path: Path) -> None:
    """A flipped byte, a cut, and another vault's file are refused."""
    keys = VaultKeys.create(tmp_path / "a", FS, None)
    secrets = SecretsFile(tmp_path, keys, FS)
    secrets.seal_secrets({"a": b"b"})
    path = tmp_path / "secrets.sealed"
    good = path.read_bytes()
    for i in range(len(good)):
        for bad in (good[:i], good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]):
            path.write_bytes(bad)
            with pytest.raises(StorageError):
                secrets.open_secrets()
    path.write_bytes(good)
    other = SecretsFile(tmp_path, VaultKeys.create(tmp_path / "b", FS, None), FS)
    with pytest.raises(StorageError):
        other.open_secrets()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_keeps_the_old_secrets(tmp_path: Path, error: int) -> None:
    """Whichever call fails while secrets are replaced: our error, and afterwards the old or the new ones are whole."""
    keys = VaultKeys.create(tmp_path, FS, None)
    SecretsFile(tmp_path, keys, FS).seal_secrets({"v": b"old"})
    plan = FaultPlan()
    faulty = SecretsFile(tmp_path, keys, FaultyFileSystem(plan))
    plan.count_only()
    faulty.seal_secrets({"v": b"old"})
    for number in range(len(plan.calls)):
        plan.fail_call(number, error)
        with pytest.raises(StorageError) as caught:
            faulty.seal_secrets({"v": b"new"})
        if error == errno.ENOSPC and "sync" not in plan.failed[0]:
            assert isinstance(caught.value, StorageFullError)
        plan.count_only()
        assert SecretsFile(tmp_path, keys, FS).open_secrets()["v"] in (b"old", b"new")
        assert not list(tmp_path.glob("*.tmp"))
        faulty.seal_secrets({"v": b"old"})
