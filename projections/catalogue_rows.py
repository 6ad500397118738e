"""The tables of the view `catalogue`, and one of its rows as it is stored. It holds no rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from walytis_vault.domain.contents import Publication
from walytis_vault.projections.names import Dids
from walytis_vault.projections.paging import order_from
from walytis_vault.projections.store import Connection, Table

GOING: Final = "forgetting > 0 AND kept + 0 < 2"
EXPIRING: Final = "expires_ms IS NOT NULL AND kept + 0 < 2"
"""Asked about, or with an expiry, and not erased here yet: few as a rule. `+ 0` keeps other indexes out of this."""
ROWS: Final = Table(
    name="rows",
    columns={
        "position": "integer",
        "content_id": "blob",
        "ord": "blob",
        "author": "integer",
        "device": "integer",
        "time_ms": "integer",
        "padded": "integer",
        "root": "blob",
        "revises": "blob",
        "parent": "blob",
        "original": "blob",
        "expires_own": "integer",
        "expires_ms": "integer",
        "retracted": "integer",
        "forgetting": "integer",
        "head": "integer",
        "conflict": "integer",
        "contested": "integer",
        "kept": "integer",
    },
    primary_key=("position",),
    unique=(("content_id",),),
    # `time_ms` stands beside `ord` so that looking for a time while walking in order need not load each row.
    indexes=(
        *(("ord", "time_ms"), ("time_ms", "position"), ("padded", "position"), ("author", "ord", "time_ms")),
        *(("kept", "ord", "time_ms"), ("kept", "time_ms", "position"), ("kept", "padded", "position")),
    ),
    partial=(
        (("revises",), "revises IS NOT NULL"),
        (("original", "ord"), "parent IS NOT NULL"),
        (("forgetting", "ord"), GOING),
        (("forgetting", "time_ms", "position"), GOING),
        (("forgetting", "padded", "position"), GOING),
        (("ord",), "retracted = 1"),
        (("expires_ms",), EXPIRING),
        (("ord",), "conflict = 1"),
        (("ord",), "head = 0"),
        (("time_ms", "position"), "head = 0"),
        (("padded", "position"), "head = 0"),
    ),
)
SEALED: Final = Table(name="sealed", columns={"position": "integer", "sealed": "blob"}, primary_key=("position",))
TOGGLES: Final = Table(
    name="toggles",
    columns={"content_id": "blob", "member": "text", "ord": "blob", "hidden": "integer"},
    primary_key=("content_id", "member"),
    clustered=True,
)
COLUMNS: Final = ", ".join(column for column in ROWS.columns if column != "kept")
"""The columns of a stored row, in the order of `Stored`: what follows from the log. `kept` is this node's own."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table `rows`, with DIDs as text."""

    position: int
    """This node's position of the (first) publication: also the row's number."""
    content_id: bytes
    ord: bytes
    author: str
    device: str
    time_ms: int
    padded: int
    root: bytes
    revises: bytes | None
    parent: bytes | None
    original: bytes
    expires_own: int | None
    expires_ms: int | None
    retracted: bool
    forgetting: int
    """0 none, 1 open, 2 carried."""
    head: bool
    conflict: bool
    contested: bool

    def publication(self) -> Publication:
        """The facts that the rules want."""
        return Publication(
            content_id=self.content_id,
            order=order_from(self.ord),
            author=self.author,
            device=self.device,
            time_ms=self.time_ms,
            padded_length=self.padded,
            root=self.root,
            revises=self.revises,
            expires_ms=self.expires_own,
        )


def stored_row(raw: Sequence[Any], dids: Dids, connection: Connection) -> Stored:
    """Read the columns `COLUMNS`."""
    (
        position,
        content_id,
        order,
        author,
        device,
        time_ms,
        padded,
        root,
        revises,
        parent,
        original,
        expires_own,
        expires_ms,
        retracted,
        forgetting,
        head,
        conflict,
        contested,
    ) = raw
    return Stored(
        position=position,
        content_id=content_id,
        ord=order,
        author=dids.text(connection, author),
        device=dids.text(connection, device),
        time_ms=time_ms,
        padded=padded,
        root=root,
        revises=revises,
        parent=parent,
        original=original,
        expires_own=expires_own,
        expires_ms=expires_ms,
        retracted=bool(retracted),
        forgetting=forgetting,
        head=bool(head),
        conflict=bool(conflict),
        contested=bool(contested),
    )
