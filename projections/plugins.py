"""The views there are: our own, and those that installed packages offer in the group `walytis_vault.projections`.

An entry point names a subclass of `View`. One that cannot be loaded, or that takes a name that is taken, is
reported and left out; it never keeps the node from starting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import msgspec

from walytis_vault.projections.ballots import BallotsView
from walytis_vault.projections.base import View
from walytis_vault.projections.catalogue import Catalogue
from walytis_vault.projections.holders import Holders
from walytis_vault.projections.members import MembersView
from walytis_vault.projections.timeline import Timeline

GROUP: Final = "walytis_vault.projections"
OWN: Final[tuple[type[View], ...]] = (Catalogue, Timeline, BallotsView, MembersView, Holders)
"""The views that every node has. `audit` is a `Source`: the composition root adds it."""
_TAKEN: Final = frozenset({"audit", "events", *(v.name for v in OWN)})
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")


def load_views(found: Iterable[EntryPoint] | None = None) -> tuple[list[type[View]], list[str]]:
    """Our views and those of installed packages.

    Args:
        found: entry points to look at, those of the environment when None.
    Returns:
        The views, and one sentence for each entry point that was left out.
    """
    views: list[type[View]] = list(OWN)
    problems: list[str] = []
    for entry in sorted(entry_points(group=GROUP) if found is None else found, key=lambda e: (e.name, e.value)):
        try:
            view = entry.load()
            reason = _refusal(view, {v.name for v in views} | _TAKEN)
        except Exception as e:  # code of strangers may raise anything
            reason = f"{type(e).__name__}: {e}"
        if reason is None:
            views.append(view)
        else:
            problems.append(f"view {entry.name!r} ({entry.value}) was left out: {reason}"[:500])
    return views, problems


def _refusal(view: object, taken: set[str]) -> str | None:
    if not isinstance(view, type) or not issubclass(view, View):
        return "it is not a subclass of walytis_vault.projections.base.View"
    if not isinstance(view.name, str) or not _NAME.match(view.name):
        return "its name is not made of lower case letters, digits and _"
    if view.name in taken:
        return f"the name {view.name!r} is taken"
    row = getattr(view, "row", None)
    if not isinstance(row, type) or not issubclass(row, msgspec.Struct):
        return "its `row` is not a msgspec struct"
    return None
