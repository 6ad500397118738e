"""The simulation's member that does what it likes: it forks, forces, retells, steals ids and backdates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from support.log_world import proposal, publication
from support.sim_node import SimDevice, SimNode
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import BATCH_VERSION, BatchBody, EventRecord, SignedBatch, seal_batch
from walytis_vault.domain.claims import prove_possession
from walytis_vault.domain.forgetting import Ballot
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.limits import LIMITS


class Liar:
    """One turn of it, from the simulation's own randomness."""

    def __init__(self, chance: random.Random, me: SimNode, honest: SimNode, contents: Sequence[bytes]) -> None:
        """`honest` is whom it lies about; `contents` are what honest members published."""
        self.chance, self.me, self.honest, self.contents = chance, me, honest, contents

    def lies(self, ballots: Sequence[Ballot]) -> list[SignedBatch]:
        """What it signs this time; nothing when it would rather send junk."""
        events: list[ev.Event]
        me, honest = self.me, self.honest
        content = self.chance.choice(self.contents) if self.contents else self.chance.randbytes(16)
        ballot = self.chance.choice(ballots).ballot_id if ballots else self.chance.randbytes(16)
        did, everybody = me.device.did, me.log.membership().active()
        match self.chance.randrange(14):
            case 0:
                events = [self._proposal(me, content, (did,))]
            case 1:
                events = [msgspec.structs.replace(self._proposal(me, content, everybody), ballot_id=ballot)]
            case 2:
                events = [ev.ForgettingConsented(ballot_id=ballot), ev.ForgettingRefused(ballot_id=ballot)]
            case 3:
                events = [
                    ev.ContentErased(contents=(content,), ballot_id=ballot),
                    ev.ContentRetracted(content_id=content),
                ]
            case 4:
                events = [ev.KeyAnnounced(keys=honest.device.keys)]
            case 5:
                events = [ev.MemberRemoved(member=honest.device.did, accepted=())]
            case 6:
                return []
            case 7:
                events = [msgspec.structs.replace(self._stolen(me), content_id=content, expires_ms=1)]
            case 8:
                ghost = self._ghost(honest)
                events = [ev.MemberAdmitted(member=ghost.member, keys=ghost, invitation=self.chance.randbytes(32))]
            case 9:
                events = [ev.KeyAnnounced(keys=msgspec.structs.replace(self._ghost(honest), member=did))]
            case 10:
                keys = msgspec.structs.replace(honest.device.keys, member=did, device=did)
                events = [ev.KeyAnnounced(keys=prove_possession(keys, me.chain.chain_id, me.device.signer))]
            case 11:
                event = ev.MemberAdmitted(
                    member=honest.device.did, keys=honest.device.keys, invitation=self.chance.randbytes(32)
                )
                events = [event, msgspec.structs.replace(event, member=did)]
            case 12:
                early = [m for m in everybody if m <= did or self.chance.random() < 0.3]
                events = [self._proposal(me, content, tuple({did, *early}))]
            case _:
                events = [ev.ForgettingWithdrawn(ballot_id=ballot)]
        return [self._sign(me, [event]) for event in events] if self.chance.random() < 0.5 else self._fork(me)

    def _proposal(self, me: SimNode, content: bytes, electorate: tuple[str, ...]) -> ev.ForgettingProposed:
        nonce = self.chance.randbytes(16)
        return proposal(me.chain.chain_id, me.device.did, [content], electorate, nonce=nonce)

    def _ghost(self, honest: SimNode) -> ev.DeviceKeys:
        """Keys of nobody's, under the name of somebody honest."""
        made = SimDevice("ghost", honest.chain.chain_id)
        keys = msgspec.structs.replace(made.keys, member=honest.device.did, device=honest.device.did)
        return prove_possession(keys, honest.chain.chain_id, made.signer)

    def _fork(self, me: SimNode) -> list[SignedBatch]:
        """Two batches under one number."""
        return [self._sign(me, [self._stolen(me)]) for _ in range(2)]

    def _stolen(self, me: SimNode) -> ev.ContentPublished:
        """A content that nobody has, at times as a revision of somebody else's, or gone at once."""
        chance = self.chance
        revises = chance.choice(self.contents) if self.contents and chance.random() < 0.5 else None
        expires = 1 if chance.random() < 0.2 else None
        vault, nonce = me.chain.chain_id, chance.randbytes(16)
        return publication(vault, me.device.did, nonce=nonce, revises=revises, expires_ms=expires)

    def _sign(self, me: SimNode, events: list[ev.Event]) -> SignedBatch:
        """A batch that follows this device's last one as its own log knows it, or one long ago."""
        with me.log.index.database.read() as connection:
            sql = "SELECT number, batch_id FROM batches WHERE device = ? ORDER BY number DESC"
            own: list[Any] = connection.execute(sql, (me.device.did,)).fetchall()
            heads = me.log.index.heads(connection, LIMITS.batch_heads)
            some: list[Any] = connection.execute("SELECT batch_id FROM batches").fetchall()
        number, previous = own[0] if own else (0, b"")
        if self.chance.random() < 0.5:
            number, previous = self.chance.choice([*own, (0, b"")])
            heads = [BatchId(bytes(self.chance.choice(some)[0]))] if not previous or self.chance.random() < 0.5 else []
        body = BatchBody(
            version=BATCH_VERSION, vault_id=me.chain.chain_id, author=me.device.did, key_id=me.device.signer.key_id,
            number=number + 1, previous=previous, heads=tuple(sorted(h for h in heads if h != previous)),
            time_ms=self.chance.randrange(1 << 40),
            events=tuple(EventRecord(e.TOPIC, ev.to_dcb(e).data) for e in events),
        )  # fmt: skip
        return seal_batch(body, me.device.signer)
