"""The node's side of `export`: lines of the log in pages, and the last line with its signature.

Stateless: a page says where the next one begins, so a lost page is asked for again, and nothing is held for a
client that went away. The snapshot is fixed by the first page. It signs only what it has read from its own log.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.bundle import format as f
from walytis_vault.bus.messages import ExportPage
from walytis_vault.domain.batch import BatchBody, decode_batch
from walytis_vault.domain.errors import MisuseError
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.ports import Clock, Signer
from walytis_vault.projections.paging import iso

PAGE_BYTES: Final = 512 << 10
READ_AT_ONCE: Final = 64
_AT: Final = "(depth, batch_id) > (?, ?) AND seq <= ?"


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a page begins: after this batch."""

    upto: int
    n: int
    depth: int
    batch_id: bytes


_decoder = msgspec.msgpack.Decoder(Cursor, strict=True)


class Exporter:
    """Makes the pages. Any thread may call."""

    def __init__(
        self, index: LogIndex, signer: Signer, *, vault_id: str, root: BatchId, device: str, clock: Clock
    ) -> None:
        """`signer` signs last lines as `device`."""
        self._index, self._signer, self._clock = index, signer, clock
        self._head = f.Head(vault_id=vault_id, root=root.hex())
        self._device = device

    def page(self, cursor: str | None) -> ExportPage:
        """The page that begins at a cursor; None for the first. Raises MisuseError for a cursor that is none."""
        at = self._begin() if cursor is None else _read_cursor(cursor)
        parts = [f.encode(self._head)] if cursor is None else []
        size = 0
        for at, line, _ in self._lines(at):  # noqa: B020 - where the page has come to
            parts.append(line)
            size += len(line)
            if size >= PAGE_BYTES:
                return ExportPage(lines=b"".join(parts), cursor=_write_cursor(at), batches=at.n)
        end = self._end(at)
        parts.append(f.encode(end))
        return ExportPage(
            lines=b"".join(parts),
            batches=end.batches,
            digest=end.digest,
            root=self._head.root,
            vault_id=self._head.vault_id,
        )

    def _begin(self) -> Cursor:
        horizon = self._index.horizon
        with self._index.database.read() as connection:
            sql = "SELECT coalesce(max(seq), 0) FROM batches WHERE first + count - 1 <= ?"
            rows: list[Any] = connection.execute(sql, (horizon,)).fetchall()
        return Cursor(upto=rows[0][0], n=0, depth=0, batch_id=b"")

    def _lines(self, at: Cursor) -> Iterator[tuple[Cursor, bytes, BatchBody]]:
        """Lines after a place, in the one order, each with its own place and its batch."""
        while True:
            with self._index.database.read() as connection:
                sql = f"SELECT depth, batch_id, envelope FROM batches WHERE {_AT} ORDER BY depth, batch_id LIMIT ?"
                values = (at.depth, at.batch_id, at.upto, READ_AT_ONCE)
                rows: list[Any] = connection.execute(sql, values).fetchall()
            for depth, batch_id, envelope in rows:
                at = Cursor(upto=at.upto, n=at.n + 1, depth=depth, batch_id=batch_id)
                batch = decode_batch(envelope)
                yield at, f.encode(f.batch_line(batch, n=at.n, depth=depth)), batch.body
            if len(rows) < READ_AT_ONCE:
                return

    def _end(self, at: Cursor) -> f.End:
        """Read everything once more, so that what is signed is what the log holds."""
        digest = hashlib.sha256(f.encode(self._head))
        batches = events = 0
        heads: set[bytes] = set()
        for place, line, body in self._lines(Cursor(upto=at.upto, n=0, depth=0, batch_id=b"")):
            digest.update(line)
            batches, events = batches + 1, events + len(body.events)
            heads.add(place.batch_id)
            heads.difference_update(body.parents())
        end = f.End(
            batches=batches,
            events=events,
            heads=tuple(sorted(h.hex() for h in heads)),
            digest=digest.hexdigest(),
            time=iso(self._clock.wall_ms()),
            device=self._device,
            key_id=self._signer.key_id.hex(),
        )
        signature = self._signer.sign(f.signed_bytes(end))
        return msgspec.structs.replace(end, signature=base64.b64encode(signature).decode())


def _write_cursor(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode()


def _read_cursor(text: str) -> Cursor:
    try:
        return _decoder.decode(base64.urlsafe_b64decode(text.encode()))
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise MisuseError("that is no cursor of an export: begin anew") from e
