"""The contract that every view must keep, and what this one counts."""

from __future__ import annotations

from pathlib import Path

from activity_view import Activity, ActivityRow
from walytis_vault.testing import MEMBERS, ViewContract, at, fold, published


class TestContract(ViewContract):
    """The tests that come with walytis-vault."""

    view_type = Activity


def test_publications_are_counted_by_month(tmp_path: Path) -> None:
    """Two in January, one in February; the filter finds the month."""
    ada = MEMBERS[0]
    history = [at(published(n, size=1000), ada, depth) for n, depth in enumerate((1, 2, 800))]
    with fold(Activity, history, tmp_path) as host:
        assert host.query("activity").rows == (
            ActivityRow(member=ada, month="2026-01", contents=2, padded_bytes=2000),
            ActivityRow(member=ada, month="2026-02", contents=1, padded_bytes=1000),
        )
        assert len(host.query("activity", filters={"month": "2026-02"}).rows) == 1
