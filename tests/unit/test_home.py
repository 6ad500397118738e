"""A home that is being made: what an attempt left is kept for its repetition, whenever it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.domain import faults
from walytis_vault.home import Home


class Killed(BaseException):
    """What a planned kill raises."""


def begin(path: Path, token: str) -> Home:
    """One attempt, up to its first own file; its process then ends."""
    home = Home(path, OsFileSystem())
    home.begin_making(token)
    home.release()
    return home


def test_a_repeated_attempt_writes_nothing_before_it_has_looked(tmp_path: Path) -> None:
    """The name of an attempt is not written again: a kill in the middle of that would cost the keys that lie there."""
    home = begin(tmp_path / "v", "token")
    (home.path / "keys").mkdir()
    before = (home.path / "making").stat()
    begin(tmp_path / "v", "token")
    after = (home.path / "making").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert (home.path / "keys").is_dir()


@pytest.mark.parametrize("point", ["replace.after_temp", "replace.after_rename"])
def test_an_attempt_that_was_killed_at_its_first_file_is_repeated(tmp_path: Path, point: str) -> None:
    """Whatever the kill left of the attempt's name, the folder is still one that a vault can be made in."""

    def kill(at: str) -> None:
        if at == point:
            raise Killed

    killed = Home(tmp_path / "v", OsFileSystem())
    faults.install(kill)
    try:
        with pytest.raises(Killed):
            killed.begin_making("token")
    finally:
        faults.install(None)
        killed.release()
    home = begin(tmp_path / "v", "token")
    assert sorted(e.name for e in home.path.iterdir()) == ["making", "node.lock"]


def test_what_another_attempt_left_is_removed(tmp_path: Path) -> None:
    """Another code begins anew."""
    home = begin(tmp_path / "v", "token")
    (home.path / "keys").mkdir()
    begin(tmp_path / "v", "other")
    assert not (home.path / "keys").exists()
    assert (home.path / "making").read_text() == "other"
