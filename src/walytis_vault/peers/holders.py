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
Links = Sequence[tuple[DeviceKeys, PeerLink]]


def who_holds(links: Links, contents: Sequence[ContentId], *, timeout: float) -> dict[ContentId, tuple[str, ...]]:
    """For each content the devices that say they have it whole, sorted by their DIDs: one message to each device.

    Args:
        contents: at most `protocol.HOLDS_AT_ONCE`.
        timeout: seconds for all answers; who gives none, or does not know the question, counts as not holding any.
    """
    asked = set(contents)
    request = p.Holds(contents=tuple(contents))
    questions = [(keys.device, link.send(request, timeout=timeout)) for keys, link in links]
    found: dict[ContentId, list[str]] = {}
    for device, future in questions:
        try:
            reply, _ = settle(future, timeout)
        except VaultError:
            continue
        if isinstance(reply, p.Held):
            for content_id in asked & {ContentId(i) for i in reply.contents}:
                found.setdefault(content_id, []).append(device)
    return {content_id: tuple(sorted(devices)) for content_id, devices in found.items()}


def held_elsewhere(links: Links, contents: Sequence[ContentId], *, timeout: float = ASK_S) -> set[ContentId]:
    """Those of some contents that a connected node says it has whole.

    Args:
        timeout: seconds for each answer; who gives none counts as not holding it.
    """
    found: set[ContentId] = set()
    for start in range(0, len(contents), p.HOLDS_AT_ONCE):
        found |= who_holds(links, contents[start : start + p.HOLDS_AT_ONCE], timeout=timeout).keys()
    return found
