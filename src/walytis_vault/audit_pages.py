"""The account of an audit in pages: what its report has no room for waits in a file until it is asked for.

Rows with something wrong or missing come first. The files of the last few audits are kept, without a name, and are
gone with the process; they hold what the record says, and nothing that is sealed.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any, Final

import msgspec

from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.domain.errors import MisuseError

PAGE_BYTES: Final = 1 << 20
"""JSON of the rows in one page; a longer row stands alone."""
KEPT: Final = 2
"""Audits whose rows are kept (a count)."""
KINDS: Final = ("contents", "ballots")

Row = dict[str, Any]


class AuditPages:
    """One for each node. Threads may share it."""

    def __init__(self, page_bytes: int = PAGE_BYTES) -> None:
        self._page_bytes = page_bytes
        self._lock = threading.Lock()
        self._files: dict[str, IO[bytes]] = {}

    def begin(self, contents: Sequence[Row], ballots: Sequence[Row]) -> dict[str, Any]:
        """The first page of a new audit: `contents`, `ballots`, and `cursor` for the next page or None.

        Raises:
            StorageError: there is no room for the others.
        """
        rows = [(0, row, content_matters(row)) for row in contents]
        rows += [(1, row, ballot_matters(row)) for row in ballots]
        rows.sort(key=lambda found: not found[2])
        token = secrets.token_hex(8)
        with self._lock, storage_errors("keep the account of the audit"):
            file = self._files[token] = tempfile.TemporaryFile()  # noqa: SIM115 - closed when others displace it
            for kind, row, _ in rows:
                file.write(b"%d%s\n" % (kind, msgspec.json.encode(row)))
            while len(self._files) > KEPT:
                self._files.pop(next(iter(self._files))).close()
        return self.page(f"{token}.0")

    def page(self, cursor: str) -> dict[str, Any]:
        """The page that begins at a cursor. Raises MisuseError when there is none, or not any more; StorageError."""
        token, _, at = cursor.partition(".")
        page: dict[str, Any] = {kind: [] for kind in KINDS} | {"cursor": None}
        with self._lock, storage_errors("read the account of the audit"):
            file = self._files.get(token)
            if file is None or not (at.isascii() and at.isdigit() and len(at) <= 18):
                raise MisuseError("the account of that audit is not kept any more: audit again")
            file.seek(int(at))
            room = self._page_bytes
            while line := file.readline():
                room -= len(line)
                if room < 0 and any(page[kind] for kind in KINDS):
                    page["cursor"] = f"{token}.{file.tell() - len(line)}"
                    break
                page[KINDS[line[0] - ord("0")]].append(msgspec.json.decode(line[1:]))
        return page

    def close(self) -> None:
        """Drop all. Idempotent."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()


def content_matters(row: Row) -> bool:
    """Whether something about a content is wrong or missing."""
    return "problem" in row or bool(row.get("not_erased_by"))


def ballot_matters(row: Row) -> bool:
    """Whether somebody's answer or receipt is missing."""
    return row["state"] == "open" or bool(row["receipts_missing"])
