"""Repairs a content whose bytes or key are damaged or lost, from the other members' nodes: what verifies stays.

Nothing is touched unless a connected node says that it holds the content whole. Used by the audit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.ids import ContentId, Root

REPAIR_S: Final = 600.0
"""Seconds for one content."""


class Bring(Protocol):
    """Fetches one content; returns when it is durable."""

    def __call__(self, content_id: ContentId, *, timeout: float) -> None: ...


class Repairer:
    """For the composition root."""

    def __init__(
        self,
        store: DiskContentStore,
        *,
        bring: Bring,
        held_elsewhere: Callable[[Sequence[ContentId]], set[ContentId]],
    ) -> None:
        """Bind the parts together."""
        self._store, self._bring, self._held_elsewhere = store, bring, held_elsewhere

    def repair(self, content_id: ContentId, root: Root) -> str | None:
        """Repair one content; why it could not be, or None when all of it verifies again."""
        try:
            if content_id not in self._held_elsewhere([content_id]):
                return "no other member's node that is connected now holds it"
            if self._store.has_bytes(content_id) and not self._store.verify(content_id, root):
                self._store.mend(content_id, root)
            self._bring(content_id, timeout=REPAIR_S)
        except VaultError as e:
            return str(e)
        if self._store.verify(content_id, root) and self._store.is_available(content_id):
            return None
        return "what came from the other nodes is damaged too"
