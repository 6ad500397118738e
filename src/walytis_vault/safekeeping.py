"""What the owner of a node does with this node's copy alone: drop bytes, lock and unlock, change the passphrase.

None of it stands on the log, and other members notice nothing but that this node holds less. It refuses to drop
what nobody else is known to hold, and to lock a vault whose key lies beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.messages import Dropped, LockState
from walytis_vault.domain.errors import ConflictError, ForgottenError, LockedError, MisuseError
from walytis_vault.domain.ids import ContentId, parse_content_id
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.reading import read_state

Held = Callable[[Sequence[ContentId]], set[ContentId]]
"""Those of some contents that a connected node of another device has whole."""


class Safekeeping:
    """For `NodeService`. Safe for many threads."""

    def __init__(
        self,
        log: VaultLog,
        store: DiskContentStore,
        keys: VaultKeys,
        views: ProjectionHost,
        *,
        held_elsewhere: Held,
        unlocked: Callable[[], None],
    ) -> None:
        """Bind to the parts of a node.

        Args:
            unlocked: called after each unlock, so that what waited for the keys goes on.
        """
        self._log = log
        self._store = store
        self._keys = keys
        self._views = views
        self._held_elsewhere = held_elsewhere
        self._unlocked = unlocked

    @property
    def locked(self) -> bool:
        """Whether the keys are out of reach."""
        return self._keys.locked

    def check_unlocked(self) -> None:
        """Raise LockedError when the keys are out of reach."""
        self._keys.check_unlocked()

    def drop(self, contents: Sequence[str], *, force: bool) -> Dropped:
        """See `VaultService.drop`."""
        wanted = [parse_content_id(c) for c in dict.fromkeys(contents)]
        state = read_state(self._log.recorder, wanted).state
        for content_id in wanted:
            verdict = state.verdict(content_id)  # raises UnknownIdError
            if verdict.forgetting == "carried" or self._store.erased(content_id):
                raise ForgottenError(f"content {content_id.hex()} was forgotten: there is nothing to drop")
        here = [i for i in wanted if self._store.has_bytes(i)]
        if not force:
            missing = set(here) - self._held_elsewhere(here) if here else set()
            if missing:
                raise ConflictError(
                    f"no other member's node that is connected now holds content {min(missing).hex()}: dropping it"
                    " could lose it for good. Forget it, wait for others to have it, or force the drop"
                )
        freed = sum(self._store.drop_bytes(i) for i in wanted)
        return Dropped(contents=tuple(i.hex() for i in wanted), freed=freed)

    def lock(self) -> LockState:
        """See `VaultService.lock`."""
        if not self._keys.with_passphrase:
            raise MisuseError(
                "this vault is opened by a key file that lies beside it, so that locking would protect nothing:"
                " give it a passphrase first (`walytis-vault passphrase`)"
            )
        self._store.lock()
        self._views.seal()
        return LockState(locked=True)

    def unlock(self, passphrase: str) -> LockState:
        """See `VaultService.unlock`."""
        self._store.unlock(passphrase)
        self._unlocked()
        return LockState(locked=False)

    def change_passphrase(self, old: str | None, new: str | None) -> LockState:
        """See `VaultService.change_passphrase`."""
        if old is None and new is None:
            raise MisuseError("name the new passphrase: this vault is opened by its key file already")
        try:
            self._keys.change_passphrase(old, new)
        except LockedError as e:
            raise MisuseError("this vault is sealed with a passphrase: name the old one too") from e
        return LockState(locked=self._keys.locked)
