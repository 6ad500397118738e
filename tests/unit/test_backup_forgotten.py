"""The list beside a backup of what was forgotten since: no line of it gets lost."""

from __future__ import annotations

import threading
from pathlib import Path

from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.backup.manifest import ForgottenList

KEY = bytes(32)


def forgotten(number: int) -> bytes:
    return bytes([number]) * 16


class Interrupted(OsFileSystem):
    """While the list is read, another thread begins to add to it; it has a moment to be done before the read ends."""

    def __init__(self, add: threading.Thread) -> None:
        self.add = add

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        found = super().pread(fd, size, offset)
        if self.add.ident is None:
            self.add.start()
            self.add.join(0.3)
        return found


def test_what_is_forgotten_while_the_list_is_cleaned_stays_in_it(tmp_path: Path) -> None:
    """Whoever takes a backup rewrites the list; whoever forgets meanwhile adds to it all the same."""
    lock, real = threading.Lock(), OsFileSystem()
    listed = ForgottenList(tmp_path, KEY, real, lock)
    listed.add([forgotten(1), forgotten(2)])
    other = threading.Thread(target=listed.add, args=([forgotten(3)],))
    ForgottenList(tmp_path, KEY, Interrupted(other), lock).keep({forgotten(1)})
    other.join(10)
    assert listed.read() == {forgotten(2), forgotten(3)}
