"""Who else holds a content right now, by asking the connected nodes. Nothing of it is kept or believed for long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.ids import ContentId
from walytis_vault.peers import protocol as p
from walytis_vault.peers.link import PeerLink, settle

ASK_S: Final = 5.0
AT_ONCE: Final = 64
"""Contents that one node is asked for ahead (a count)."""


def held_elsewhere(
    links: Sequence[tuple[DeviceKeys, PeerLink]], contents: Sequence[ContentId], *, timeout: float = ASK_S
) -> set[ContentId]:
    """Those of some contents that a connected node says it has whole.

    Args:
        timeout: seconds for each answer; who gives none counts as not holding it.
    """
    found: set[ContentId] = set()
    for start in range(0, len(contents), AT_ONCE):
        asked = [
            (content_id, link.send(p.Fetch(content_id=content_id, first=False), timeout=timeout))
            for content_id in contents[start : start + AT_ONCE]
            for _, link in links
        ]
        for content_id, future in asked:
            try:
                reply, _ = settle(future, timeout)
            except VaultError:
                continue
            if isinstance(reply, p.Fetched) and reply.state == "here":
                found.add(content_id)
    return found
