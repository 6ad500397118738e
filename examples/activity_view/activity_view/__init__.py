"""A view of one's own: how much each member published in each month.

Installed beside walytis-vault (`pip install examples/activity_view`), every node of that environment keeps it:
`walytis-vault query activity`, `client.query("activity", month="2026-01")`, `client.subscribe("activity")`.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from walytis_vault.domain.events import ContentPublished, Origin
from walytis_vault.projections.base import Local, ViewRecorder
from walytis_vault.projections.keyed import KeyedView
from walytis_vault.projections.store import Connection


class ActivityRow(msgspec.Struct, frozen=True, kw_only=True):
    """One member in one month, by the member's clock (UTC)."""

    member: str
    month: str
    contents: int = 0
    padded_bytes: int = 0
    """As the log shows it to everybody: true sizes are sealed."""


class Activity(KeyedView):
    """Publications by member and month."""

    name = "activity"
    version = 1
    row = ActivityRow

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.handlers = {ContentPublished: self._published}

    def _published(self, connection: Connection, event: ContentPublished, origin: Origin, position: int) -> None:
        month = datetime.fromtimestamp(origin.time_ms / 1000, tz=UTC).strftime("%Y-%m")
        key = f"{month} {origin.author}"
        row = self.get(connection, key) or ActivityRow(member=origin.author, month=month)
        more = msgspec.structs.replace(
            row, contents=row.contents + 1, padded_bytes=row.padded_bytes + event.padded_length
        )
        self.put(connection, key, more, position)
