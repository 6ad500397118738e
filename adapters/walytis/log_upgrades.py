"""What an index that an earlier version wrote needs once, before this version reads it.

The log itself never changes: only what the index derived from it is derived anew. Each step is one transaction that
also writes down that it was done.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis.log_rows import TAGS_ENCODER
from walytis_vault.domain.events import ContentPublished, content_tag, revision_tag

REVISIONS_HAVE_A_TAG_OF_THEIR_OWN: Final = 2
"""`user_version` from which on a revision does not share the tag of what is said about its original."""
PAGE: Final = 1000
"""Events looked at between two queries."""
_PUBLISHED = msgspec.msgpack.Decoder(ContentPublished)


def retag_revisions(database: Database) -> None:
    """Give each revision the tag `revises:<id>` in place of `content:<id>` of its original."""
    with database.transaction() as connection:
        (version,) = next(connection.execute("PRAGMA user_version"))
        if version >= REVISIONS_HAVE_A_TAG_OF_THEIR_OWN:
            return
        # An original has one tag, and its list begins with another byte.
        sql = (
            "SELECT position, data FROM events WHERE topic = ? AND substr(tags, 1, 1) = x'92' AND position > ?"
            " ORDER BY position LIMIT ?"
        )
        after, more = 0, True
        while more:
            rows: list[Any] = connection.execute(sql, (ContentPublished.TOPIC, after, PAGE)).fetchall()
            for position, data in rows:
                event = _PUBLISHED.decode(data)
                assert event.revises is not None
                old, new = content_tag(event.revises), revision_tag(event.revises)
                connection.execute("DELETE FROM tags WHERE tag = ? AND position = ?", (old, position))
                connection.execute("INSERT OR IGNORE INTO tags VALUES(?,?)", (new, position))
                tags = TAGS_ENCODER.encode(event.tags())
                connection.execute("UPDATE events SET tags = ? WHERE position = ?", (tags, position))
                after = position
            more = bool(rows)
        connection.execute(f"PRAGMA user_version = {REVISIONS_HAVE_A_TAG_OF_THEIR_OWN}")
