"""docs/views.md names every view with exactly its columns and filters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from walytis_vault.projections.audit import FILTERS, AuditRow
from walytis_vault.projections.plugins import OWN

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "views.md").read_text()
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
    """The view that the page shows is, line by line, the one of the package that the tests install."""
    source = (ROOT / "examples" / "activity_view" / "activity_view" / "__init__.py").read_text()
    page = (ROOT / "docs" / "how-to-write-a-projection.md").read_text()
    first, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert first in source
    (entry,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert entry in (ROOT / "examples" / "activity_view" / "pyproject.toml").read_text()
