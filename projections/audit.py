"""The view `audit`: every batch and block that reached this node, accepted or not, and why.

The log keeps these records itself; this names their columns and asks for them. Its rows differ between nodes
by their nature (junk reaches one and not another), so it has no hash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from walytis_vault.domain.errors import MisuseError
from walytis_vault.projections import paging
from walytis_vault.projections.base import Page, Request

Verdict = Literal["accepted", "void", "waiting", "foreign", "refused", "unreadable"]
VERDICTS: Final = ("accepted", "void", "waiting", "foreign", "refused", "unreadable")
FILTERS: Final = frozenset({"verdict", "author", "device"})


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One block of the log chain as this node judged it."""

    number: int
    """This node's own running number, ascending: the cursor."""
    verdict: Verdict
    reason: str | None = None
    """Why it was not accepted, or became void."""
    block: str | None = None
    """Hex key of the block; None while it is not on the chain."""
    batch_id: str | None = None
    author: str | None = None
    """Member DID; None when it could not be established."""
    device: str | None = None
    batch_number: int | None = None
    depth: int | None = None
    time: str | None = None
    """By the author's clock, ISO 8601 (UTC)."""
    events: int | None = None
    """How many events it carries."""


Fetch = Callable[[int, int, dict[str, Any]], Sequence[AuditRow]]
"""(after this number, at most so many, checked filters) -> rows, ascending by number."""


class AuditView:
    """A `Source` over the log's own records."""

    name: Final = "audit"
    row: Final = AuditRow

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def page(self, request: Request) -> Page:
        """See `Source.page`. Oldest first; filters: verdict, author, device."""
        limit = paging.check_limit(request.limit)
        unknown = sorted(set(request.filters) - FILTERS)
        if unknown:
            known = ", ".join(sorted(FILTERS))
            raise MisuseError(f"view audit has no filter {unknown[0]!r}; it has: {known}")
        filters = {k: paging.text(k, v) for k, v in request.filters.items() if k != "verdict"}
        if "verdict" in request.filters:
            filters["verdict"] = paging.choice("verdict", request.filters["verdict"], VERDICTS)
        after = 0
        if request.cursor is not None:
            (at,) = paging.read_cursor(request.cursor, self.name, "number", (int,))
            after = int(at)
        most = paging.MAX_LIMIT if limit is None else limit + 1
        rows = tuple(self._fetch(after, most, filters))
        if limit is None or len(rows) <= limit:
            return Page(rows=rows)
        rows = rows[:limit]
        return Page(rows=rows, cursor=paging.cursor_text(self.name, "number", [rows[-1].number]))
