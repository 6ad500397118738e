"""A view that somebody else keeps, asked for its rows when a query comes: the audit's list of batches, for one."""

from __future__ import annotations

from typing import Protocol

import msgspec

from walytis_vault.projections.base import Page, Request


class Source(Protocol):
    """Rows from elsewhere, under the name of a view."""

    @property
    def name(self) -> str:
        """The view's name."""
        ...

    @property
    def row(self) -> type[msgspec.Struct]:
        """The type of its rows."""
        ...

    def page(self, request: Request) -> Page:
        """Answer one query. Raises MisuseError for a bad filter or cursor."""
        ...
