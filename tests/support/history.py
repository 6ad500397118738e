"""Random pasts of a vault, written by members who know only what reached them; some of them misbehave."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from support.log_world import GROUP, Device, note, proposal, publication
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.events import (
    ANY_MEMBER,
    ContentErased,
    ContentPublished,
    ContentRestored,
    ContentRetracted,
    DeviceKeys,
    DeviceRemoved,
    Event,
    ForgettingConsented,
    ForgettingRefused,
    ForgettingWithdrawn,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
    VaultFounded,
)

_DEVICES: dict[str, Device] = {}


def device(name: str) -> Device:
    """Keys are dear to make: one set a name for all histories. `m1/2` is a device of the member `m1`."""
    if name not in _DEVICES:
        first = name.partition("/")[0]
        _DEVICES[name] = Device(name, device(first) if first != name else None)
    return _DEVICES[name]


class History:
    """A vault's past as its honest and dishonest members wrote it, each knowing only what reached it."""

    def __init__(
        self, vault_id: str, seed: int, size: int, *, contents: bool = False, policy: str = ANY_MEMBER
    ) -> None:
        """Write `size` batches; with `contents` members also publish, hide, revise and vote."""
        self._contents: list[bytes] = []
        self._published: list[tuple[str, ContentPublished]] = []
        self._ballots: list[bytes] = []
        self._with_contents = contents
        self._random = random.Random(seed)
        self._vault = vault_id
        self.batches: dict[bytes, SignedBatch] = {}
        self._past: dict[bytes, frozenset[bytes]] = {}
        self._depth: dict[bytes, int] = {}
        self._seen: dict[str, set[bytes]] = {}
        self._last: dict[str, tuple[int, bytes]] = {}
        self._invitations = self._extras = 0
        founder = device("m0")
        self._members = ["m0"]
        """Every device that was ever let in; a member's first one has the member's name."""
        vault_founded = VaultFounded(founder=founder.member, group=GROUP, removal_policy=policy)
        founded = [vault_founded, KeyAnnounced(keys=founder.keys(vault_id))]
        self._seen["m0"] = set()
        self.root = self._write("m0", founded)
        for name in ("m1", "m2"):
            self._admit("m0", name)
        while len(self.batches) < size:
            self._step()

    def _step(self) -> None:
        actor = self._random.choice(self._members)
        if self._with_contents and self._random.random() < 0.7:
            self._write(actor, [self._content_event(device(actor).member)])
            return
        match self._random.randrange(11):
            case 0 | 1:
                self._write(actor, [note(self._random.randrange(1000))])
            case 2 | 3:
                self._sync(actor, self._random.choice(self._members))
            case 4 | 5:
                victim = self._random.choice(self._members)
                if victim != actor:
                    self._remove(actor, victim)
            case 6:
                if len(self._members) < 8:
                    self._admit(actor, f"m{len(self._members)}")
            case 7:
                if len(self._members) < 8:
                    self._add_device(actor, f"{actor.partition('/')[0]}/{len(self._members)}")
            case 9:
                self._go_back(actor)
            case 8:
                victim = self._random.choice(self._members)
                if victim != actor:
                    self._remove_device(actor, victim)
            case _:
                self._write(actor, [KeyAnnounced(keys=self._fresh_keys(actor))])

    def _content_event(self, author: str) -> Event:
        """Something about contents or ballots, often out of place: nobody checked before signing."""
        pick, ids, ballots = self._random.randrange(12), self._contents, self._ballots
        if pick < 4 or not ids:
            own = [made for who, made in self._published if who == author]
            if own and self._random.random() < 0.2:  # once more under the same id, with other bytes
                return msgspec.structs.replace(self._random.choice(own), root=self._random.randbytes(32))
            revises = self._random.choice(ids) if self._random.random() < 0.4 and ids else None
            made = publication(self._vault, author, nonce=self._random.randbytes(16), revises=revises)
            ids.append(made.content_id)
            self._published.append((author, made))
            return made
        content = self._random.choice(ids)
        if pick == 4:
            return ContentRetracted(content_id=content)
        if pick == 5:
            return ContentRestored(content_id=content)
        if pick < 8 or not ballots:
            electorate = {device(m).member for m in self._members}
            chosen = tuple(dict.fromkeys(self._random.choices(ids, k=2)))
            asked = proposal(self._vault, author, chosen, sorted(electorate), nonce=self._random.randbytes(16))
            ballots.append(asked.ballot_id)
            return asked
        ballot = self._random.choice(ballots)
        if pick < 10:
            return ForgettingConsented(ballot_id=ballot)
        if pick == 10:
            return self._random.choice([ForgettingRefused(ballot_id=ballot), ForgettingWithdrawn(ballot_id=ballot)])
        return ContentErased(contents=(content,), ballot_id=ballot)

    def _fresh_keys(self, name: str) -> DeviceKeys:
        """Keys of one more device of the member, which never writes."""
        self._extras += 1
        extra = f"{name}-{self._extras}"
        if extra not in _DEVICES:
            _DEVICES[extra] = Device(extra, device(name))
        return _DEVICES[extra].keys(self._vault)

    def _sync(self, a: str, b: str) -> None:
        self._seen[a] |= self._seen[b]

    def _admit(self, actor: str, name: str) -> None:
        self._invitations += 1
        keys = device(name).keys(self._vault)
        secret = self._invitations.to_bytes(32, "big")
        self._write(actor, [MemberAdmitted(member=keys.member, keys=keys, invitation=secret)])
        self._members.append(name)
        self._seen[name] = set(self._seen[actor])

    def _add_device(self, actor: str, name: str) -> None:
        self._write(actor, [KeyAnnounced(keys=device(name).keys(self._vault))])
        self._members.append(name)
        self._seen[name] = set(self._seen[actor])

    def _remove(self, actor: str, victim: str) -> None:
        member = device(victim).member
        names = sorted(n for n in self._members if device(n).member == member)
        accepted = tuple(cut for n in names if (cut := self._last_seen(actor, n)) is not None)
        accepted = tuple(sorted(accepted, key=lambda a: a.device))
        self._write(actor, [MemberRemoved(member=member, accepted=accepted, reason="why not")])

    def _remove_device(self, actor: str, victim: str) -> None:
        cut = self._last_seen(actor, victim)
        gone = device(victim)
        accepted = () if cut is None else (cut,)
        self._write(actor, [DeviceRemoved(member=gone.member, device=gone.device, accepted=accepted)])

    def _last_seen(self, actor: str, name: str) -> LastBatch | None:
        """The last batch of a device that another one knows: of a fork, the side that a judge finds first."""
        did = device(name).device
        theirs = [b for i in self._seen[actor] if (b := self.batches[i]).body.author == did]
        last = min(theirs, key=lambda b: (-self._depth[b.batch_id], b.batch_id), default=None)
        return None if last is None else LastBatch(device=did, number=last.body.number, batch_id=last.batch_id)

    def _write(self, name: str, events: Sequence[Event]) -> bytes:
        number, previous = self._last.get(name, (0, b""))
        batch_id = self._sign(name, events, number, previous, self._seen[name])
        self._last[name] = (number + 1, batch_id)
        return batch_id

    def _go_back(self, name: str) -> None:
        """Sign a second batch under a number that the device has used, as if it knew nothing since."""
        did = device(name).device
        own = [b for i in self._seen[name] if (b := self.batches[i]).body.author == did and b.batch_id != self.root]
        if not own:
            return
        at = self._random.choice(sorted(own, key=lambda b: b.batch_id))
        keys = device(self._random.choice(self._members)).keys(self._vault)
        events = [
            note(self._random.randrange(1000)),
            MemberAdmitted(member=keys.member, keys=keys, invitation=self._random.randbytes(32)),
            self._content_event(device(name).member) if self._with_contents else note(1),
        ]
        past = set(self._past[at.batch_id]) | {at.batch_id}
        self._sign(name, [self._random.choice(events)], at.body.number, at.batch_id, past)

    def _sign(self, name: str, events: Sequence[Event], number: int, previous: bytes, past: set[bytes]) -> bytes:
        covered = frozenset[bytes]().union(*(self._past[i] for i in past)) if past else frozenset()
        heads = [i for i in past if i not in covered and i != previous]
        batch = device(name).batch(self._vault, events, number=number + 1, previous=previous, heads=heads)
        self.batches[batch.batch_id] = batch
        self._past[batch.batch_id] = frozenset(past)
        self._depth[batch.batch_id] = 1 + max((self._depth[i] for i in past), default=0)
        self._seen[name].add(batch.batch_id)
        return batch.batch_id
