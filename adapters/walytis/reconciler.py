"""Catch-up: walks from the chain's leaves to known blocks, judges what is new, parents first.

The chain's listener is only a hint to look now. The walk is iterative and judges in bounded chunks, one
transaction each, so a crash costs at most one chunk of work. Blocks that wait for a missing cause are parked by
key on disk (a stranger's junk costs us less than it costs the chain) and looked at again when the cause arrives.
Spec: design.md 3.8.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import apsw

from walytis_vault.adapters.walytis.judge import Accepted, Waiting
from walytis_vault.adapters.walytis.ledger import Ledger
from walytis_vault.domain.batch import decode_batch
from walytis_vault.domain.errors import (
    BusyError,
    NewerVersionError,
    NotYetAvailableError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.ports import BlockRef, Chain

CHUNK: Final = 256
"""Blocks judged in one transaction."""
CHUNK_BYTES: Final = 8 << 20
"""Bytes of them, one block more or less."""
LOOK_EVERY_S: Final = 20.0
"""How often the leaves are looked at when no hint comes."""
ACCEPT_WAIT_S: Final = 2.0
"""How long batches from a member wait for the blocks that are being judged."""
LOCAL_S: Final = 1.0
"""For how long a hint is taken for our own block, whose making may fail and be tried again for hours."""
HINTS_KEPT: Final = 4096
FETCHERS: Final = 4
"""Threads that wait for blocks from peers, at most."""
QUIET_LEAVES: Final = 1_000_000
"""Leaves that are remembered as judged, 100 bytes each: strangers can make any number of them."""
DEEP_WALK: Final = 20_000
"""Unknown blocks on one walk after which a sequential scan, which needs no memory, is the better way."""
GENESIS_CONTENT: Final = b"Hello World, new blockchain getting born!"
"""What walytis_beta writes into the first blocks of every chain."""

_log = logging.getLogger(__name__)


class Reconciler:
    """Owns the thread through which blocks enter the log."""

    def __init__(
        self, ledger: Ledger, chain: Chain, *, progress: Callable[[int], None] | None = None, patience: float = 0.0
    ) -> None:
        """Prepare; `start` runs.

        Args:
            progress: told how many blocks were judged so far in a long catch-up.
            patience: seconds for which everything waits for a block that peers must send.
        """
        self._patience = patience
        self._wanted: dict[bytes, BlockRef] = {}
        """Blocks that are asked for from peers, aside."""
        self._fetchers = 0
        self._quiet: set[bytes] = set()
        """Leaves that have a verdict."""
        self._below_own: set[bytes] = set()
        """Our last block and what it stands on, as far as it is known: most likely the next one stands on the same."""
        self._missing = False
        """Whether a batch lacked a cause since that was told last."""
        self._on_missing: list[Callable[[], None]] = []
        self._ledger = ledger
        self._index = ledger.index
        self._chain = chain
        self._progress = progress
        self._hints: dict[bytes, BlockRef] = {}
        self._look = False
        self._local_until = 0.0
        self._changed = threading.Condition()
        self._closing = False
        self._judging = threading.Lock()
        """Held for one transaction, never for a whole walk: what members send directly gets in between."""
        self._stop_listening: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="log-reconciler", daemon=True)
        self.last_error: str | None = None

    def start(self) -> None:
        """Listen to the chain and keep up with it, beginning with what came before anybody listened."""
        self._stop_listening = self._chain.listen(self.hint)
        self._look = True
        self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Stop; the chunk under way is finished or rolled back. Bounded by `timeout` seconds."""
        if self._stop_listening is not None:
            self._stop_listening()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def hint(self, ref: BlockRef) -> None:
        """A block may be new. Too many hints at once become one look at the leaves."""
        with self._changed:
            if len(self._hints) < HINTS_KEPT:
                self._hints[ref.key] = ref
            else:
                self._look = True
            # While our own writer makes a block, the hint is most likely about that one: it says so in a moment.
            if not self._is_local():
                self._changed.notify()

    def local_begin(self) -> None:
        """Our own writer starts to make a block."""
        with self._changed:
            self._local_until = time.monotonic() + LOCAL_S

    def local_block(self, ref: BlockRef) -> None:
        """Our own writer made this block: nothing needs to be judged but what it stands on."""
        try:
            below = [key for key in ref.parents if key not in self._below_own and not self._known(key)]
            self._below_own = {ref.key, *ref.parents}.difference(below)
            found = {key: below_it for key in below if (below_it := self._chain.find(key))}
        except VaultError:  # the block exists, whatever the disk says: a later look sorts it out
            below, found = list(ref.parents), {}
        self._index.overdue.note(below)
        with self._changed:
            self._local_until = 0.0
            self._hints.pop(ref.key, None)
            self._hints.update(found)
            if self._hints or self._look:
                self._changed.notify()

    def on_missing(self, callback: Callable[[], None]) -> None:
        """Call back (quickly) when a batch came whose cause is not here: somebody must be asked for it."""
        self._on_missing.append(callback)

    def look(self) -> None:
        """Ask for a walk from the leaves, now."""
        with self._changed:
            self._look = True
            self._changed.notify()

    def catch_up(self) -> int:
        """Judge everything that is known to the chain and new to us; return how many blocks that was."""
        return self._walk(self._everywhere())

    def accept(self, envelopes: Iterable[bytes]) -> bool:
        """Judge batches that a member sent directly, causes first, exactly as if they stood in blocks.

        The blocks remain the record: they are found on the chain later, and looked at again.

        Returns:
            Whether a cause of any of them is not here; such a batch was not taken.
        Raises:
            BusyError: others' blocks take too long. StorageError: the index cannot be written.
        """
        missing, released = False, list[bytes]()
        if not self._judging.acquire(timeout=ACCEPT_WAIT_S):
            raise BusyError("this node is catching up: the batches are asked for later")
        try:
            with self._index.database.transaction() as connection:
                for envelope in envelopes:
                    try:
                        batch = decode_batch(envelope)
                        verdict = self._ledger.receive(connection, batch, None)
                    except UntrustedInputError:
                        continue  # its block, if there is one, is refused with the reason
                    missing = missing or isinstance(verdict, Waiting)
                    if isinstance(verdict, Accepted):
                        released += self._index.release(connection, batch.batch_id)
                fault("accept.before_commit")
        except BaseException:
            self._ledger.forget_current()
            raise
        finally:
            self._judging.release()
        self._index.publish_horizon()
        self._judge_chunk(released)
        return missing

    def build_on_heads(self) -> None:
        """Let the chain's next block stand on what the log accepted, whatever else lies on the chain."""
        with self._index.database.read() as connection:
            heads = self._index.head_blocks(connection, LIMITS.batch_heads)
        self._chain.build_on(heads)

    # -- the reconciler thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                woken = self._changed.wait_for(self._woken, LOOK_EVERY_S)
                if self._closing:
                    return
                hints, self._hints = list(self._hints.values()), {}
                whole = self._look or not woken
                self._look = False
            try:
                self._walk([*hints, *(self._everywhere() if whole else [])])
                self.last_error = None
            except Exception as e:  # the thread must live: strangers' bytes lie in its way
                # Shown by `status`; the next look repeats the whole walk, nothing is lost.
                self.last_error = str(e) if isinstance(e, VaultError) else f"{type(e).__name__}: {e}"

    def _everywhere(self) -> list[BlockRef]:
        """Where a walk starts that is to find everything: the leaves, and what is known to be hidden below others."""
        hidden = (self._chain.find(key) for key in self._index.overdue.left(self._known))
        leaves = self._chain.leaves(self._quiet)
        if len(self._quiet) > QUIET_LEAVES:
            self._quiet = set()
        # A block without a verdict that had one is overdue, so that these need never be asked after again.
        self._quiet |= {ref.key for ref in leaves if self._known(ref.key)}
        return [*leaves, *(ref for ref in hidden if ref is not None)]

    def _woken(self) -> bool:
        return self._closing or self._look or bool(self._hints and not self._is_local())

    def _is_local(self) -> bool:
        return time.monotonic() < self._local_until

    def _walk(self, start: Iterable[BlockRef]) -> int:
        """Judge unknown ancestors of `start`, parents first."""
        judged = 0
        chunk: list[BlockRef] = []
        for ref in self._unknown(start):
            chunk.append(ref)
            if len(chunk) >= CHUNK:
                judged += self._judge_chunk(chunk)
                chunk = []
                if self._progress:
                    self._progress(judged)
                if self._closing:
                    return judged
        return judged + (self._judge_chunk(chunk) if chunk else 0)

    def _unknown(self, start: Iterable[BlockRef]) -> Iterator[BlockRef]:
        """Blocks without a verdict, parents first; only keys are kept in memory."""
        given = {ref.key: ref for ref in start}
        stack = [(key, False) for key in given]
        seen: set[bytes] = set()
        while stack:
            key, expanded = stack.pop()
            if expanded:
                if ref := given.pop(key, None) or self._chain.find(key):
                    yield ref
                continue
            if key in seen or self._known(key):
                continue
            seen.add(key)
            if len(seen) > DEEP_WALK:
                yield from self._scan()
                return
            ref = given.get(key) or self._chain.find(key)
            if ref is None:
                continue
            stack.append((key, True))
            stack.extend((parent, False) for parent in ref.parents)

    def _scan(self) -> Iterator[BlockRef]:
        """Every unknown block in the chain's own order; children that come first wait for their cause."""
        blocks = self._chain.blocks()
        while refs := list(islice(blocks, CHUNK)):
            yield from (ref for ref in refs if not self._known(ref.key))

    def _known(self, key: bytes) -> bool:
        if self._index.is_own_block(key):
            return True
        with self._index.database.read() as connection:
            return self._index.verdict(connection, key) is not None

    def _judge_chunk(self, blocks: Iterable[BlockRef | bytes]) -> int:
        """Judge blocks (or those with these keys) in order, then those that waited for them.

        However many those are, only so many are held and judged in one transaction.
        """
        judged = 0
        todo = deque(blocks)
        while todo:
            contents = list(self._next_of(todo))
            released: list[bytes] = []
            with self._judging:
                try:
                    with self._index.database.transaction() as connection:
                        for ref, content in contents:
                            # What somebody else judged meanwhile is looked at again, which changes nothing.
                            released += self._judge(connection, ref, content)
                        self._index.overdue.flush(connection)
                        fault("reconcile.before_commit")
                except BaseException:
                    self._ledger.forget_current()
                    raise
            fault("reconcile.committed")
            judged += len(contents)
            self._index.publish_horizon()
            self.build_on_heads()
            todo.extend(dict.fromkeys(released))
            missing, self._missing = self._missing, False
            for callback in self._on_missing if missing else ():
                callback()
        return judged

    def _next_of(self, todo: deque[BlockRef | bytes]) -> Iterator[tuple[BlockRef, bytes]]:
        """Take the next blocks that can be read, with their contents; the others are left for later."""
        count = size = 0
        while todo and count < CHUNK and size < CHUNK_BYTES:
            block = todo.popleft()
            ref = block if isinstance(block, BlockRef) else self._chain.find(block)
            content = None if ref is None else self._read(ref)
            if ref is not None and content is not None:
                count, size = count + 1, size + len(content)
                yield ref, content

    def _read(self, ref: BlockRef) -> bytes | None:
        """The block's content; None when it is not here, so that a later look tries again."""
        try:
            return self._chain.read(ref, timeout=self._patience)
        except NotYetAvailableError:
            self._index.overdue.note([ref.key])
            self._fetch_aside(ref)
            return None
        except UntrustedInputError as e:
            with self._index.database.transaction() as connection:
                self._index.set_verdict(connection, ref.key, "refused", str(e))
            return None

    def _fetch_aside(self, ref: BlockRef) -> None:
        """Get a block from peers while the others are judged; then it is hinted at."""
        with self._changed:
            if len(self._wanted) < HINTS_KEPT:
                self._wanted[ref.key] = ref
            if not self._thread.is_alive() or self._fetchers >= FETCHERS:
                return
            self._fetchers += 1
        threading.Thread(target=self._fetch, name="log-fetch", daemon=True).start()

    def _fetch(self) -> None:
        while True:
            with self._changed:
                if self._closing or not self._wanted:
                    self._fetchers -= 1
                    return
                _, ref = self._wanted.popitem()
            try:
                self._chain.read(ref)
                self.hint(ref)
            except VaultError as e:
                _log.debug("a block is still missing: %s", e)  # the next look asks again

    def _judge(self, connection: apsw.Connection, ref: BlockRef, content: bytes) -> list[bytes]:
        """Give one block its verdict; return the keys of blocks that waited for it."""
        if content.startswith(GENESIS_CONTENT):
            self._index.set_verdict(connection, ref.key, "genesis", None)
            return []
        try:
            batch = decode_batch(content)
            judged = self._ledger.receive(connection, batch, ref.key)
        except UntrustedInputError as e:
            verdict = "unreadable" if isinstance(e, NewerVersionError) else "refused"
            self._index.set_verdict(connection, ref.key, verdict, str(e)[:500])
            return []
        if isinstance(judged, Waiting):
            self._index.park(connection, ref.key, judged.missing)
            self._missing = True
            return []
        if isinstance(judged, Accepted):
            self._index.set_verdict(connection, ref.key, "accepted", None)
        elif self._index.verdict(connection, ref.key) is None:
            self._index.set_verdict(connection, ref.key, "duplicate", None)
        return self._index.release(connection, BatchId(batch.batch_id))
