"""Publishes that share a wait: each has its own receipt or error, takes effect once, and expires as promised."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from support.content_stores import AUTHOR, open_store
from support.log_world import Device, founded
from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.system import SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.receipts import REPLY_KEPT_MS
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.batcher import Batcher
from walytis_vault.bus.messages import InlinePublish, Published, PublishOptions, RequestKey
from walytis_vault.domain.errors import ConflictError, ExpiredRequestError, MisuseError, VaultError
from walytis_vault.publishing_together import publish_together

FOUNDING_EVENTS = 2


class SetClock(SystemClock):
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def wall_ms(self) -> int:
        """See `domain.ports.Clock`."""
        return super().wall_ms() + self.ahead_ms


class Together:
    """A store and a log on disk, on a chain in memory."""

    def __init__(self, folder: Path) -> None:
        device, chain = Device("a"), MemoryNetwork(1).replica("a")
        root = founded(chain, device)
        self.clock = SetClock()
        self.store: DiskContentStore = open_store(folder)
        self.log = VaultLog(
            Database(folder / "log.sqlite"),
            chain,
            device.signer,
            HybridVerifier(),
            device=device.device,
            root=root,
            clock=self.clock,
        )
        self.log.start()

    def publish(self, *wanted: InlinePublish) -> list[Published | VaultError]:
        """Publish them in one go."""
        return publish_together(
            self.log,
            self.store,
            wanted,
            vault_id=self.log.chain.chain_id,
            author=AUTHOR,
            clock=self.clock,
            randomness=SystemRandomness(),
        )

    @property
    def published(self) -> int:
        """Events beyond the founding."""
        return self.log.index.horizon - FOUNDING_EVENTS

    def close(self) -> None:
        """Close both."""
        self.log.close()
        self.store.close()


@pytest.fixture
def together(tmp_path: Path) -> Iterator[Together]:
    made = Together(tmp_path)
    yield made
    made.close()


def inline(number: int, *, data: bytes = b"x", body: int | None = None, **options: object) -> InlinePublish:
    """A publish with request id `number`."""
    key = RequestKey(
        client="c",
        request_id=number.to_bytes(16, "big"),
        digest=b"d" * 32,
        sealed=(number if body is None else body).to_bytes(32, "big"),
    )
    return InlinePublish(options=PublishOptions(**options), data=data, key=key)  # type: ignore[arg-type]


def test_all_of_a_batch_are_published_in_few_blocks(together: Together) -> None:
    """100 contents get 100 positions, and share their blocks."""
    results = together.publish(*(inline(n, data=bytes([n]) * 1000) for n in range(1, 101)))
    positions = [r.position for r in results if isinstance(r, Published)]
    assert sorted(positions) == list(range(FOUNDING_EVENTS + 1, FOUNDING_EVENTS + 101))
    assert together.log.index.verdict_counts()["accepted"] <= 3
    assert len(together.store.content_ids()) == 100


def test_one_that_cannot_be_published_does_not_hold_up_another(together: Together) -> None:
    """Errors come in the place of their publish; nothing of them is stored."""
    results = together.publish(
        inline(1),
        inline(2, expires_ms=1),
        inline(3, media_type="\n"),
        inline(4, name="n" * 4096, note="o" * 16_000),
        inline(5),
    )
    assert [type(r) for r in results] == [Published, MisuseError, MisuseError, MisuseError, Published]
    assert together.published == 2
    assert len(together.store.content_ids()) == 2


def test_the_same_request_in_one_batch_and_later_takes_effect_once(together: Together) -> None:
    """A request that is there twice, at once and again, has one content; another body under its id is refused."""
    first, second, other = together.publish(inline(1), inline(1), inline(2))
    assert first == second
    assert isinstance(other, Published)
    assert together.publish(inline(1), inline(2)) == [first, other]
    (conflict,) = together.publish(inline(1, body=7))
    assert type(conflict) is ConflictError
    third, twin = together.publish(inline(3), inline(3, body=7))
    assert isinstance(third, Published)
    assert type(twin) is ConflictError
    assert together.published == 3
    assert len(together.store.content_ids()) == 3


def test_plain_digests_of_an_earlier_version_are_removed(tmp_path: Path) -> None:
    """A digest that confirms guesses does not survive the next start; the reply does."""
    together = Together(tmp_path)
    (first,) = together.publish(inline(1))
    plain = os.urandom(32)
    with together.log.index.database.transaction() as connection:
        connection.execute("UPDATE replies SET digest = ?", (plain,))
        connection.execute("PRAGMA user_version = 0")
    database = together.log.index.database
    database.checkpoint()
    assert plain in database.path.read_bytes()
    index = LogIndex(database)
    assert not [path.name for path in tmp_path.glob("log.sqlite*") if plain in path.read_bytes()]
    same = index.kept_reply("c", (1).to_bytes(16, "big"), lambda kept: kept == b"", together.clock.wall_ms())
    assert same == msgspec.msgpack.encode(first)
    together.close()


def test_a_request_id_expires_and_never_takes_effect_again(together: Together) -> None:
    """After 7 days a repeat is told so, on both ways in, also when other requests have cleared the replies away."""
    (first,) = together.publish(inline(1))
    together.clock.ahead_ms = REPLY_KEPT_MS - 60_000
    assert together.publish(inline(1)) == [first]
    together.clock.ahead_ms = REPLY_KEPT_MS + 60_000
    for extra in range(2, 5):
        (expired,) = together.publish(inline(1))
        assert type(expired) is ExpiredRequestError
        with pytest.raises(ExpiredRequestError):
            together.log.index.kept_reply("c", (1).to_bytes(16, "big"), lambda _: True, together.clock.wall_ms())
        assert isinstance(together.publish(inline(extra))[0], Published)
    assert together.published == 4
    together.clock.ahead_ms = 0  # a clock that goes back does not bring a cleared reply back, nor an effect
    assert isinstance(together.publish(inline(1))[0], ExpiredRequestError)
    assert together.published == 4


def test_a_closing_log_answers_everyone(together: Together) -> None:
    """When the log is closed, each publish gets an error, and none is lost."""
    together.log.writer.close()
    results = together.publish(inline(1), inline(2))
    assert [r.code for r in results if isinstance(r, VaultError)] == ["transport", "transport"]


def test_a_batch_takes_from_every_owner_in_turn() -> None:
    """A batch is bounded, and an owner with a thousand tasks does not keep out one with a single task."""
    gate, batches, done = threading.Event(), [], threading.Semaphore(0)

    def work(batch: list[str]) -> None:
        gate.wait(5)
        batches.append(batch)
        for _ in batch:
            done.release()

    batcher: Batcher[str] = Batcher("test", 1, 8, work)
    batcher.submit("greedy", "first")
    while batcher.depth:
        done.acquire(timeout=0.001)  # until the worker has taken the first one
    for n in range(100):
        batcher.submit("greedy", f"greedy {n}")
    batcher.submit("modest", "modest")
    gate.set()
    for _ in range(102):
        assert done.acquire(timeout=5)
    batcher.close()
    assert batcher.join(5)
    assert "modest" in batches[1]
    assert max(len(batch) for batch in batches) == 8


def test_a_batch_that_fails_does_not_end_the_worker() -> None:
    """The worker goes on after an error that its work let through."""
    seen, done = [], threading.Event()

    def work(batch: list[int]) -> None:
        seen.append(batch)
        if len(seen) == 1:
            raise RuntimeError("planned")
        done.set()

    batcher: Batcher[int] = Batcher("test", 1, 1, work)
    batcher.submit("a", 1)
    batcher.submit("a", 2)
    assert done.wait(5)
    batcher.close()
    assert seen == [[1], [2]]
