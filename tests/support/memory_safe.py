"""The part of the `VaultService` in memory that concerns this node's own copy: drop, lock, unlock, passphrase."""

from __future__ import annotations

from walytis_vault.bus.messages import Dropped, LockState
from walytis_vault.domain.errors import ConflictError, LockedError, WrongPassphraseError


class MemorySafe:
    """A base of `MemoryService`. Nobody else holds anything, so that only force drops."""

    locked = False
    passphrase: str | None = "open sesame"
    blobs: dict[str, bytes]

    def check_unlocked(self) -> None:
        if self.locked:
            raise LockedError("the vault is locked: unlock it first")

    def drop(self, contents: tuple[str, ...], *, force: bool) -> Dropped:
        if not force:
            raise ConflictError("no other node holds it")
        freed = sum(len(self.blobs.pop(content_id, b"")) for content_id in contents)
        return Dropped(contents=contents, freed=freed)

    def lock(self) -> LockState:
        self.locked = True
        return LockState(locked=True)

    def unlock(self, passphrase: str) -> LockState:
        if passphrase != self.passphrase:
            raise WrongPassphraseError("wrong passphrase")
        self.locked = False
        return LockState(locked=False)

    def change_passphrase(self, old: str | None, new: str | None) -> LockState:
        if old != self.passphrase:
            raise WrongPassphraseError("wrong passphrase")
        self.passphrase = new
        return LockState(locked=self.locked)
