"""The long past of a vault of five members, for measurements: the same for every run, made event by event.

Mostly publications; 2 % revisions, 2 % retractions, 1 % ballots of two members. Ids fit whoever gives them, so the
log takes it; as a memory log's records it can be made without signing anything.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.log_world import Device, open_log
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import claims
from walytis_vault.domain import events as ev
from walytis_vault.domain.ids import BatchId

MEMBERS = tuple(f"did:walytis:{hashlib.sha256(b'%d' % i).hexdigest()}" for i in range(5))
TIME_MS = 1_700_000_000_000
PER_BATCH = 200
"""Events in one batch of the log on disk (a count)."""
LINKED = 200
"""From so many events on, some speak of earlier ones."""


class Story:
    """Events 1, 2, 3 … of the vault; position 1 is the founding where the log has none of its own."""

    def __init__(self, vault_id: str = "vault", members: Sequence[str] = MEMBERS) -> None:
        self.vault_id, self.members = vault_id, tuple(members)

    def author(self, position: int) -> int:
        """Which member acts."""
        kind = position % 100
        if kind in (3, 53) and position > LINKED:
            return (position - 101) % 5
        return position % 2 if kind in (7, 8) else position % 5

    def content(self, position: int) -> bytes:
        """The id of the content that `position` publishes."""
        who, nonce = self.members[self.author(position)], position.to_bytes(16, "big")
        return claims.content_id_of(self.vault_id, who, nonce, revises=self._revised(position))

    def _revised(self, position: int) -> bytes | None:
        return self.content(position - 105) if position % 100 in (20, 70) and position > LINKED else None

    def event(self, position: int) -> ev.Event:
        """What happens."""
        kind = position % 100
        if kind in (3, 53) and position > LINKED:
            return ev.ContentRetracted(content_id=self.content(position - 101))
        if kind == 7 and position > LINKED:
            return self._proposal(position)
        if kind == 8 and position > LINKED:
            return ev.ForgettingConsented(ballot_id=self._proposal(position - 1).ballot_id)
        rng, content_id = random.Random(position), self.content(position)
        return ev.ContentPublished(
            content_id=content_id,
            nonce=position.to_bytes(16, "big"),
            root=rng.randbytes(32),
            padded_length=padded_of(content_id),
            header=bytes(56),
            descriptor=rng.randbytes(232),
            revises=self._revised(position),
        )

    def asked(self, position: int) -> bytes:
        """The content that the ballot of `position` (7, 107, 207 …) asks about."""
        return self.content(position - 105)

    def _proposal(self, position: int) -> ev.ForgettingProposed:
        contents, electorate = (self.asked(position),), tuple(sorted(self.members[:2]))
        who, nonce = self.members[self.author(position)], position.to_bytes(16, "big")
        ballot_id = claims.ballot_id_of(self.vault_id, who, nonce, contents, electorate)
        return ev.ForgettingProposed(ballot_id=ballot_id, nonce=nonce, contents=contents, electorate=electorate)

    def recorded(self, position: int) -> ev.Recorded:
        """The same as a log gives it; the first founds the vault."""
        event = self.event(position)
        if position == 1:
            event = ev.VaultFounded(founder=self.members[0], group="did:walytis:group")
        author = self.members[self.author(position)]
        origin = ev.Origin(
            batch_id=hashlib.sha256(b"batch %d" % position).digest(),
            index=0,
            depth=position,
            author=author,
            device=author + "/device",
            number=position,
            time_ms=TIME_MS + 1000 * position,
        )
        return ev.Recorded(event.tags(), event, origin)


def padded_of(content_id: bytes) -> int:
    """The padded length of a content: 1 kB to 1 MB."""
    return 1000 + int.from_bytes(content_id[1:5], "big") % 999_000


def write_log(folder: Path, count: int) -> tuple[VaultLog, Story]:
    """A log on disk that took the story's first `count` events from signed batches of five members."""
    devices = [Device(f"m{number}") for number in range(5)]
    chain = MemoryNetwork().replica("bench")
    story = Story(chain.chain_id, [device.member for device in devices])
    numbers, last = [0] * 5, [b""] * 5
    head = b""

    def write(who: int, events: list[ev.Event], at: int) -> None:
        nonlocal head
        numbers[who] += 1
        heads = [head] if head and head != last[who] else []
        batch = devices[who].batch(
            chain.chain_id,
            events,
            number=numbers[who],
            previous=last[who],
            heads=heads,
            time_ms=TIME_MS + 1000 * at,
        )
        last[who] = head = batch.batch_id
        chain.append(batch.envelope())

    founded = ev.VaultFounded(founder=devices[0].member, group="did:test:group")
    write(0, [founded, ev.KeyAnnounced(keys=devices[0].keys(chain.chain_id))], 0)
    root = BatchId(head)
    for number, device in enumerate(devices[1:], start=1):
        keys = device.keys(chain.chain_id)
        write(0, [ev.MemberAdmitted(member=device.member, keys=keys, invitation=bytes([number]) * 32)], 0)
    log = open_log(folder, chain, devices[0], root)
    for start in range(1, count + 1, PER_BATCH):
        for who, events in _by_author(story, range(start, min(count, start + PER_BATCH - 1) + 1)):
            write(who, events, start)
    log.reconciler.catch_up()
    return log, story


def _by_author(story: Story, positions: range) -> Iterator[tuple[int, list[ev.Event]]]:
    for who in (1, 2, 3, 4, 0):  # a consent by 0 comes after the proposal by 1 that it answers
        events = [story.event(p) for p in positions if story.author(p) == who]
        if events:
            yield who, events
