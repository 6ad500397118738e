"""`verify`: checks a bundle with nothing but the file: no vault, no network, no keys.

Every line is made again from what it says and compared byte for byte; every batch is judged as a node would judge
it; order, number and last line follow from the set of batches alone. So a changed, removed, added or moved line is
found, and a file that ends early too. Whether it is the vault that one means, only a comparison with its root can
tell, and whether it is all of it, only one with its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.adapters.walytis.second_log import SecondLog
from walytis_vault.bundle import format as f
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.errors import MisuseError, UntrustedInputError
from walytis_vault.domain.ids import BatchId, KeyId
from walytis_vault.ledger_account import read_account

FINDINGS: Final = 100
"""After so many problems it stops looking."""
GROUP_BYTES: Final = 8 << 20
GROUP_LINES: Final = 256
LISTED: Final = 1000


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the bundle is to be compared with; None: nothing to compare with."""

    vault_id: str | None = None
    root: str | None = None
    digest: str | None = None


class _StopError(Exception):
    """Nothing after this can be judged."""


def verify_bundle(
    path: Path, expected: Expected | None = None, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Check a bundle; return the report as builtin types. `ok` says it all.

    Args:
        progress: told how many bytes were read so far.
    Raises:
        MisuseError: there is no such file. StorageError: it cannot be read, or there is no room to check it.
    """
    if not path.is_file():
        raise MisuseError(f"{path}: there is no such file")
    with storage_errors(f"read {path}"), path.open("rb") as file:
        return _Check(file, expected or Expected(), progress).run()


class _Check:
    """One check of one file."""

    def __init__(self, file: IO[bytes], expected: Expected, progress: Callable[[int], None]) -> None:
        self._file, self._expected, self._progress = file, expected, progress
        self._findings: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()
        self._line = 0
        self._read = 0
        self._batches = 0
        self._last: tuple[int, bytes] = (0, b"")

    def run(self) -> dict[str, Any]:
        """The report."""
        report: dict[str, Any] = {"ok": False}
        try:
            head = self._head()
            report |= {"vault_id": head.vault_id, "root": head.root}
            root = BatchId(bytes.fromhex(head.root))
            with SecondLog(vault_id=head.vault_id, root=root, verifier=HybridVerifier()) as again:
                end = self._body(again)
                self._end(again, end)
                report |= self._summary(again, end)
        except _StopError:
            pass
        report["findings"] = self._findings
        report["ok"] = not self._findings
        return report

    def _find(self, reason: str, line: int | None = None) -> None:
        self._findings.append({"line": self._line if line is None else line, "reason": reason})
        if len(self._findings) >= FINDINGS:
            raise _StopError

    def _next(self) -> bytes:
        """The next line with its end; empty at the end of the file."""
        line = self._file.readline(f.MAX_LINE)
        self._read += len(line)
        if line:
            self._line += 1
            if not line.endswith(b"\n"):
                self._find("the line is cut off, or longer than any line may be")
                raise _StopError
        return line

    def _head(self) -> f.Head:
        line = self._next()
        try:
            head = f.decode(line, f.Head)
            if head.format != f.BUNDLE_FORMAT:
                raise UntrustedInputError(f"format {head.format}: this version reads format {f.BUNDLE_FORMAT}")
        except UntrustedInputError as e:
            self._find(f"not the first line of a bundle: {e}", 1)
            raise _StopError from e
        self._digest.update(line)
        wanted = self._expected
        if wanted.vault_id is not None and wanted.vault_id != head.vault_id:
            self._find(f"it is a bundle of another vault, {head.vault_id}")
        if wanted.root is not None and wanted.root != head.root:
            self._find(f"it begins with another founding batch, {head.root}")
        return head

    def _body(self, again: SecondLog) -> bytes:
        """Judge all batches; return the last line."""
        for group, after in self._groups():
            self._judge(again, group)
            self._progress(self._read)
            if after is not None:
                return after
        self._find("the file ends without its last line: it was cut off", self._line + 1)
        raise _StopError

    def _groups(self) -> Iterator[tuple[list[tuple[int, bytes]], bytes | None]]:
        """Lines of batches in groups that fit into memory; with the last group the line after them."""
        group: list[tuple[int, bytes]] = []
        size = 0
        while line := self._next():
            if not line.startswith(b'{"type":"batch",'):
                yield group, line
                return
            self._digest.update(line)
            group.append((self._line, line))
            size += len(line)
            if size >= GROUP_BYTES or len(group) >= GROUP_LINES:
                yield group, None
                group, size = [], 0
        yield group, None

    def _judge(self, again: SecondLog, group: list[tuple[int, bytes]]) -> None:
        envelopes: list[tuple[int, bytes, bytes]] = []
        for number, line in group:
            try:
                envelopes.append((number, line, f.from_base64(f.decode(line, f.BatchLine).envelope)))
            except UntrustedInputError as e:
                self._find(str(e), number)
        judged = again.take(envelope for _, _, envelope in envelopes)
        for (number, line, _), found in zip(envelopes, judged, strict=True):
            self._batches += 1
            if found.refusal is not None or found.batch is None:
                self._find(f"the batch does not hold: {found.refusal}", number)
            else:
                self._hold(again, found.batch, number, line)

    def _hold(self, again: SecondLog, batch: SignedBatch, number: int, line: bytes) -> None:
        """The line must be the one that this batch has at this place."""
        with again.index.database.read() as connection:
            row = again.index.batch(connection, batch.batch_id)
        assert row is not None
        made = f.encode(f.batch_line(batch, n=number - 1, depth=row.depth))
        if made != line:
            self._find("it says something else than the batch that it holds", number)
        place = (row.depth, bytes(batch.batch_id))
        if place <= self._last:
            self._find("it does not stand in its place", number)
        self._last = place

    def _end(self, again: SecondLog, line: bytes) -> None:
        try:
            end = f.decode(line, f.End)
            signature = f.from_base64(end.signature)
        except UntrustedInputError as e:
            self._find(f"not the last line of a bundle: {e}")
            raise _StopError from e
        batches, events, _ = again.counts()
        said = (end.digest, end.batches, end.events, list(end.heads))
        if said != (self._digest.hexdigest(), batches, events, again.heads()) or batches != self._batches:
            self._find("it speaks of other lines than those before it")
        membership = again.membership()
        key_id = KeyId(bytes.fromhex(end.key_id))
        refusal = membership.refusal(key_id, end.device)
        if refusal is not None:
            self._find(f"it is signed by nobody who may: {refusal}")
        else:
            keys = membership.keys[key_id]
            valid = HybridVerifier().verify(
                ed25519=keys.ed25519, ml_dsa_65=keys.ml_dsa_65, signature=signature, message=f.signed_bytes(end)
            )
            if not valid:
                self._find("its signature does not verify")
        if self._expected.digest is not None and self._expected.digest != end.digest:
            self._find(f"it is another state of the vault, {end.digest}")
        if self._file.read(1):
            self._find("something follows the last line", self._line + 1)

    def _summary(self, again: SecondLog, last: bytes) -> dict[str, Any]:
        end = f.decode(last, f.End)
        account = read_account(again)
        batches, events, voids = again.counts()
        keys = again.membership().keys.get(KeyId(bytes.fromhex(end.key_id)))
        return {
            "digest": end.digest,
            "heads": list(end.heads),
            "exported": {"time": end.time, "device": end.device, "member": None if keys is None else keys.member},
            "batches": batches,
            "events": events,
            "void_batches": voids,
            "forks": [{"device": device, "number": number} for device, number in again.index.forks()],
            "members": account.members,
            "contents_total": len(account.contents),
            "contents_forgotten": sum(1 for c in account.contents if c["forgetting"] == "carried"),
            "contents": account.contents[:LISTED],
            "ballots_total": len(account.ballots),
            "ballots": account.ballots[:LISTED],
            "odd": account.odd[:LISTED],
        }
