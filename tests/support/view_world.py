"""Random histories of a small vault, and a host over them: for tests of folds and views.

The histories need not make sense: late causes, strangers, doubled ids and contradictions are what the folds
must bring to one result in every order of arrival.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from support.memory_log import MemoryLog, origin_of
from walytis_vault.adapters.storage.view_store import SqliteViewStore, TemporaryViewStore
from walytis_vault.domain import events as ev
from walytis_vault.projections.base import Descriptor, Local, View
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.projections.plugins import OWN
from walytis_vault.projections.store import ViewStore

MEMBERS = ("did:a", "did:b", "did:c", "did:d")


def content(number: int) -> bytes:
    """The id of content `number`."""
    return hashlib.sha256(b"content %d" % number).digest()[:16]


def ballot(number: int) -> bytes:
    """The id of ballot `number`."""
    return hashlib.sha256(b"ballot %d" % number).digest()[:16]


def published(number: int, *, revises: int | None = None, expires_ms: int | None = None, size: int = 1000) -> ev.Event:
    """A publication whose descriptor is sealed by being written backwards (see `Vault`)."""
    return ev.ContentPublished(
        content_id=content(number),
        nonce=bytes(16),
        root=hashlib.sha256(b"root %d" % number).digest(),
        padded_length=size,
        header=bytes(56),
        descriptor=b"sealed %d" % number,
        revises=None if revises is None else content(revises),
        expires_ms=expires_ms,
    )


def proposed(number: int, contents: Sequence[int], electorate: Sequence[str] = MEMBERS[:2]) -> ev.Event:
    """A proposal to forget."""
    return ev.ForgettingProposed(
        ballot_id=ballot(number),
        nonce=bytes(16),
        contents=tuple(content(c) for c in contents),
        electorate=tuple(electorate),
        reason=b"sealed reason",
    )


def founded(founder: str = "did:a") -> ev.Event:
    """The founding."""
    return ev.VaultFounded(founder=founder, group="did:group")


def keys_of(member: str, device: str | None = None) -> ev.DeviceKeys:
    """Keys of a device, made up."""
    device = device or f"{member}/1"
    digest = hashlib.sha256(device.encode()).digest()
    return ev.DeviceKeys(
        member=member, device=device, ed25519=digest, ml_dsa_65=digest * 61, bus=digest, peer_id=f"peer {device}"
    )


def admitted(member: str) -> ev.Event:
    """An admission."""
    invitation = hashlib.sha256(member.encode()).digest()
    return ev.MemberAdmitted(member=member, keys=keys_of(member), invitation=invitation)


def at(event: ev.Event, author: str, depth: int, *, device: str | None = None, salt: int = 0) -> ev.Recorded:
    """An event with an origin; `salt` tells batches of one device and depth apart."""
    origin = origin_of(author, depth, device=device, number=depth * 1000 + salt)
    return ev.Recorded(event.tags(), event, origin)


def random_history(seed: int, length: int) -> list[ev.Recorded]:
    """Any events by anyone at any depth, over few ids so that they meet."""
    rng = random.Random(seed)
    history = [at(founded(), "did:a", 1)]
    history += [at(admitted(m), "did:a", 1, salt=i + 1) for i, m in enumerate(MEMBERS[1:])]
    for salt in range(10, 10 + length):
        author = rng.choice(MEMBERS)
        device = f"{author}/{rng.randint(1, 2)}"
        history.append(at(_random_event(rng), author, rng.randint(1, 12), device=device, salt=salt))
    return history


def _random_event(rng: random.Random) -> ev.Event:
    number, voted = rng.randrange(6), rng.randrange(4)
    kind = rng.choice("ppppprrtsbbbccccxwmekd")
    if kind == "p":
        expires = rng.choice([None, None, 5_000 + number])
        return published(number, expires_ms=expires)
    if kind == "r":
        return published(number, revises=rng.randrange(6))
    if kind == "t":
        return ev.ContentRetracted(content_id=content(number))
    if kind == "s":
        return ev.ContentRestored(content_id=content(number))
    if kind == "b":
        return proposed(voted, rng.sample(range(6), rng.randint(1, 2)), rng.sample(MEMBERS, rng.randint(1, 3)))
    if kind == "c":
        return ev.ForgettingConsented(ballot_id=ballot(voted))
    if kind == "x":
        return ev.ForgettingRefused(ballot_id=ballot(voted))
    if kind == "w":
        return ev.ForgettingWithdrawn(ballot_id=ballot(voted))
    if kind == "m":
        return ev.MemberRemoved(member=rng.choice(MEMBERS[1:]), accepted=())
    if kind == "d":
        member = rng.choice(MEMBERS)
        return ev.DeviceRemoved(member=member, device=f"{member}/{rng.randint(1, 3)}", accepted=(), reason="lost")
    if kind == "k":
        member = rng.choice(MEMBERS)
        return ev.KeyAnnounced(keys=keys_of(member, f"{member}/{rng.randint(1, 3)}"))
    return ev.ContentErased(contents=(content(number),), ballot_id=rng.choice([None, ballot(voted)]))


class Opened(msgspec.Struct, frozen=True):
    """An opened descriptor."""

    name: str | None
    media_type: str | None
    labels: tuple[str, ...]
    length: int


class Vault:
    """What a node knows beside the log: keys, bytes, erased contents, the time."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Opened] = {}
        self.bytes: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.elsewhere: dict[bytes, tuple[str, ...]] | None = None
        """Who else holds a content; None: there is nobody to ask."""
        self.questions: list[list[bytes]] = []
        """What the others were asked about."""
        self.now = 0
        self.opened = 0
        """How often a descriptor was opened."""
        self.changes: list[bytes] = []
        """Contents whose key or bytes came or went, in order; told when `follows`."""
        self.follows = False

    def has(self, number: int, name: str, *, media_type: str = "text/plain", labels: Iterable[str] = ()) -> None:
        """Put a content's key and bytes here."""
        self.keys[content(number)] = Opened(name, media_type, tuple(labels), 900 + number)
        self.bytes.add(content(number))
        self.changes.append(content(number))

    def drop(self, number: int) -> None:
        """Let go of the bytes."""
        self.bytes.discard(content(number))
        self.changes.append(content(number))

    def erase(self, number: int) -> None:
        """Destroy them."""
        self.keys.pop(content(number), None)
        self.bytes.discard(content(number))
        self.gone.add(content(number))
        self.changes.append(content(number))

    def _changed(self, mark: int) -> tuple[int, Sequence[bytes] | None]:
        return len(self.changes), self.changes[mark:] if self.follows and mark >= 0 else None

    def _held_by(self, contents: Sequence[bytes]) -> dict[bytes, tuple[str, ...]]:
        if self.elsewhere is None:
            return {}
        self.questions.append(list(contents))
        return {content_id: self.elsewhere.get(content_id, ()) for content_id in contents}

    def _unseal(self, content_id: bytes, sealed: bytes) -> Descriptor | None:
        self.opened += 1
        return self.keys.get(content_id) if sealed.startswith(b"sealed") else None

    def local(self) -> Local:
        """For a host."""
        return Local(
            unseal=self._unseal,
            unseal_reason=lambda content_id, _sealed: "because" if content_id in self.keys else None,
            has_bytes=lambda content_id: content_id in self.bytes,
            erased=lambda content_id: content_id in self.gone,
            held_by=self._held_by,
            now_ms=lambda: self.now,
            changed=self._changed,
        )


@contextmanager
def hosting(
    folder: Path,
    log: MemoryLog,
    *,
    views: Sequence[type[View]] = OWN,
    vault: Vault | None = None,
    batch: int = 500,
    epoch: Callable[[], int] | None = None,
    make_store: Callable[[Path], ViewStore] = lambda folder: SqliteViewStore(folder / "views.db"),
) -> Iterator[ProjectionHost]:
    """A host over a log, in a database that a later call for this folder finds again."""
    store = make_store(folder)
    host = ProjectionHost(
        log,
        log,
        store,
        views,
        local=(vault or Vault()).local(),
        batch=batch,
        epoch=epoch,
        temporary=TemporaryViewStore,
    )
    try:
        yield host
    finally:
        host.close()
        store.close()
