"""docs/views.md names every view with exactly its columns and filters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from walytis_vault.projections.audit import FILTERS, AuditRow
from walytis_vault.projections.plugins import OWN

TEXT = (Path(__file__).parents[2] / "docs" / "views.md").read_text()
VIEWS: list[tuple[str, type[msgspec.Struct], frozenset[str]]] = [(v.name, v.row, v.filters) for v in OWN]
VIEWS.append(("audit", AuditRow, FILTERS))


@pytest.mark.parametrize(("name", "row", "filters"), VIEWS, ids=[v[0] for v in VIEWS])
def test_columns_and_filters_are_documented(name: str, row: Any, filters: frozenset[str]) -> None:
    """A column or filter that is added, renamed or dropped must be in the document."""
    found = re.search(rf"^## {name}\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    columns, _, after = found[1].partition("Filters:")
    words = set(re.findall(r"\w+", columns))
    assert {f.name for f in msgspec.structs.fields(row)} <= words
    assert filters <= set(re.findall(r"\w+", after))


def test_the_example_is_the_tested_one() -> None:
    """The handler shown is, apart from type hints, the one of the plugin that the tests load."""
    source = (Path(__file__).parents[1] / "support" / "plugin_views.py").read_text()
    for line in (
        'tables = (Table(name="rows", columns={"author": "blob", "n": "integer"}, primary_key=("author",)),)',
        "self.handlers = {ev.ContentPublished: self._published}",
        'key, table = origin.author.encode(), self.t("rows")',
        "self.touch(key, position)",
    ):
        assert line in source
        assert line.replace("ev.", "") in TEXT
