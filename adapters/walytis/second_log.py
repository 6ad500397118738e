"""A second log: the whole history judged again, from raw bytes, into an index of its own that is thrown away.

What an audit or a bundle claims is held against it. The rules are the node's own (`Judge`, `Reconciler`), so
that there is one set of them; what is not shared is everything that the node remembers: its index, its verdicts,
its cache of members. Lies in a temporary folder, so memory stays bounded at any length of the log.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis.history import LogHistory
from walytis_vault.adapters.walytis.judge import Judge, Waiting
from walytis_vault.adapters.walytis.ledger import Ledger
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.reconciler import Reconciler
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import SignedBatch, decode_batch
from walytis_vault.domain.errors import StorageError, UntrustedInputError
from walytis_vault.domain.ids import BatchId, KeyId
from walytis_vault.domain.membership import Membership
from walytis_vault.domain.ports import Chain, Verifier

PAGE: Final = 500
PATIENCE_S: Final = 10.0
"""How long a check waits for each block that peers must send."""
TOGETHER: Final = 256
"""Batches in one transaction."""


class Judged(msgspec.Struct, frozen=True):
    """What became of one batch that was given."""

    batch: SignedBatch | None
    refusal: str | None
    """Why it does not hold; None when it does."""


class SecondLog:
    """A context manager; its files are gone when it ends. One thread at a time."""

    def __init__(self, *, vault_id: str, root: BatchId, verifier: Verifier) -> None:
        """Make an empty log in a temporary folder (mode 0700). Raises StorageError."""
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="second-log-"))
        except OSError as e:
            raise StorageError(f"no temporary folder for the check: {e.strerror or e}") from e
        try:
            self.index = LogIndex(Database(self._folder / "log.sqlite", durable=False))
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.judge = Judge(self.index, verifier, ev.PRODUCT_EVENTS, vault_id, root)
        self.ledger = Ledger(self.index, self.judge)
        self.history = LogHistory(self.index, self.judge)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything. Idempotent."""
        try:
            self.index.database.close()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def read_chain(self, chain: Chain, progress: Callable[[int], None] | None = None) -> int:
        """Judge every block of a chain that was not judged yet; return how many those were.

        Raises:
            StorageError, TransportError.
        """
        return Reconciler(self.ledger, chain, progress=progress, patience=PATIENCE_S).catch_up()

    def settle(self, chain: Chain, envelopes: Sequence[bytes]) -> None:
        """Judge batches that have no block, and the blocks that stand on them, until nothing more follows."""
        before, now = -1, self.counts()[0]
        while envelopes and now != before:
            Reconciler(self.ledger, chain, patience=PATIENCE_S).accept(envelopes)
            before, now = now, self.counts()[0]

    def take(self, envelopes: Iterable[bytes]) -> Iterator[Judged]:
        """Judge batches in the order given, causes first; one that waits for a cause does not hold."""
        group: list[bytes] = []
        for envelope in envelopes:
            group.append(envelope)
            if len(group) >= TOGETHER:
                yield from self._take(group)
                group = []
        if group:
            yield from self._take(group)

    def _take(self, group: list[bytes]) -> list[Judged]:
        done: list[Judged] = []
        try:
            with self.index.database.transaction() as connection:
                for envelope in group:
                    batch: SignedBatch | None = None
                    refusal: str | None = None
                    try:
                        batch = decode_batch(envelope)
                        verdict = self.ledger.receive(connection, batch, None)
                        if isinstance(verdict, Waiting):
                            refusal = f"one of its causes, batch {verdict.missing.hex()}, is not there"
                        elif verdict is None:
                            refusal = "the same batch was there before"
                    except UntrustedInputError as e:
                        refusal = str(e)
                    done.append(Judged(batch, refusal))
        except BaseException:
            self.ledger.forget_current()
            raise
        self.index.publish_horizon()
        return done

    def is_signed(self, batch: SignedBatch) -> bool:
        """Whether the signatures of a batch that was judged, or of a copy of it with others, are its key's."""
        keys = self.membership().keys.get(KeyId(batch.body.key_id))
        return keys is not None and self.judge.is_signed(batch, keys.ed25519, keys.ml_dsa_65)

    def membership(self) -> Membership:
        """Members and keys, given everything that was judged."""
        return self.ledger.current()

    def events(self, *, types: Iterable[str] = ()) -> Iterator[ev.Recorded]:
        """Every event that counts, decoded, with its origin; in pages."""
        mapper, after = ev.ClosedMapper(), 0
        wanted = sorted(types)
        query = DCBQuery(items=[DCBQueryItem(types=wanted)]) if wanted else None
        while True:
            rows = self.index.read(query, after, PAGE, 2**62)
            for position, logged in rows:
                after = position
                recorded = mapper.to_domain_event(logged)
                assert isinstance(recorded, ev.Recorded)
                yield recorded
            if len(rows) < PAGE:
                return

    def counts(self) -> tuple[int, int, int]:
        """Batches, events, and batches that are void."""
        with self.index.database.read() as connection:
            sql = "SELECT count(*), coalesce(sum(count), 0), coalesce(sum(void), 0) FROM batches"
            batches, events, voids = next(iter(connection.execute(sql)))
        return int(batches or 0), int(events or 0), int(voids or 0)

    def heads(self) -> list[str]:
        """Batches that no other names as its cause, as hex, sorted."""
        with self.index.database.read() as connection:
            return sorted(bytes(row[0]).hex() for row in connection.execute("SELECT batch_id FROM heads"))
