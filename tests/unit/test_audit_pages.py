"""The account of an audit comes whole, however long it is, and begins with what is wrong or missing."""

from __future__ import annotations

from typing import Any

import pytest

from walytis_vault.audit_pages import AuditPages
from walytis_vault.bus.requests import join_audit
from walytis_vault.domain.errors import MisuseError

COUNT = 5000


def content(number: int, **more: Any) -> dict[str, Any]:
    return {"content_id": f"{number:032x}", "author": "did:walytis:" + "a" * 64, "root": "0" * 64, **more}


def ballot(number: int, state: str = "carried", missing: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"ballot_id": f"{number:032x}", "state": state, "receipts_missing": list(missing)}


def whole(pages: AuditPages, report: dict[str, Any]) -> int:
    """Fetch what follows; how many pages it was."""
    count = 1
    while report["cursor"]:
        join_audit(report, pages.page(report["cursor"]))
        count += 1
    return count


def test_what_lacks_receipts_comes_first_of_thousands() -> None:
    """Of 5,000 contents, the last of which somebody has not erased, no row is lost and that one leads."""
    contents = [content(n, erased_by=["did:x"], not_erased_by=[]) for n in range(COUNT - 1)]
    contents.append(content(COUNT, erased_by=[], not_erased_by=["did:x"]))
    ballots = [ballot(1), ballot(2, missing=("did:x",)), ballot(3, state="open")]
    pages = AuditPages()
    report = pages.begin(contents, ballots)
    assert report["contents"][0] == contents[-1]
    assert report["ballots"] == [ballots[1], ballots[2]]
    assert whole(pages, report) > 1
    assert report["contents"] == [contents[-1], *contents[:-1]]
    assert report["ballots"] == [*ballots[1:], ballots[0]]
    pages.close()


@pytest.mark.parametrize("page_bytes", [1, 300, 1000])
def test_pages_of_any_size_lose_nothing(page_bytes: int) -> None:
    """A row longer than a page stands alone in one."""
    contents = [content(n, problem="x" * n * 7) for n in range(40)]
    pages = AuditPages(page_bytes)
    report = pages.begin(contents, [])
    assert whole(pages, report) > 1
    assert report["contents"] == contents
    assert pages.begin([], []) == {"contents": [], "ballots": [], "cursor": None}
    pages.close()


def test_the_accounts_of_older_audits_are_let_go() -> None:
    """A page of a displaced account, or of none, is refused with a sentence; the last two are there."""
    pages = AuditPages(page_bytes=1)
    cursors = [str(pages.begin([content(1), content(2)], [])["cursor"]) for _ in range(3)]
    for cursor in cursors[1:]:
        assert pages.page(cursor)["contents"] == [content(2)]
    for wrong in (cursors[0], "", "x.1", cursors[2].split(".")[0] + ".x"):
        with pytest.raises(MisuseError, match="audit again"):
            pages.page(wrong)
    pages.close()
