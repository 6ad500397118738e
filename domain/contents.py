"""Contents: what was published, hidden, revised, forgotten. An order-free fold, and the rules for commands.

Pure functions over facts; the views keep the same facts in tables and call the same functions. It refuses to
decide anything by a clock: expiry is a field, and the caller says what time it is.
Rules: design.md 4 ("Editing"), docs/adr/0005-projections.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem

from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import (
    ConflictError,
    ForgottenError,
    MisuseError,
    PermissionRefusedError,
    UnknownIdError,
)
from walytis_vault.domain.forgetting import (
    BY_DEPTH,
    Ballot,
    Ballots,
    History,
    Order,
    open_ballot_for,
)

Forgetting = Literal["none", "open", "carried"]


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """The log's half of a content: what stays for ever."""

    content_id: bytes
    order: Order
    author: str
    device: str
    time_ms: int
    padded_length: int
    root: bytes
    revises: bytes | None
    """As declared; `is_revision_of` says whether it counts."""
    expires_ms: int | None


class Toggle(msgspec.Struct, frozen=True, array_like=True):
    """The last retraction or restoration by one member."""

    order: Order
    hidden: bool


def publication(event: ev.ContentPublished, origin: ev.Origin) -> Publication:
    """The publication that an event records."""
    return Publication(
        content_id=event.content_id,
        order=origin.order,
        author=origin.author,
        device=origin.device,
        time_ms=origin.time_ms,
        padded_length=event.padded_length,
        root=event.root,
        revises=event.revises,
        expires_ms=event.expires_ms,
    )


def is_revision_of(child: Publication, parent: Publication) -> bool:
    """Whether a declared link counts: same author, and the parent is earlier (which also rules out cycles)."""
    return child.revises == parent.content_id and child.author == parent.author and parent.order < child.order


def heads(versions: Sequence[Publication], history: History = BY_DEPTH) -> tuple[Publication, ...]:
    """The versions that no other version has superseded; more than one is a conflict.

    A version supersedes those that its author had seen: the one that it names, and those in its causal past.
    Returns them sorted by order.
    """
    top: list[Publication] = []
    for version in sorted(versions, key=lambda v: v.order):
        top = [v for v in top if not supersedes(version, v, history)]
        top.append(version)
    return tuple(top)


def supersedes(later: Publication, earlier: Publication, history: History = BY_DEPTH) -> bool:
    """Whether the author of `later` had seen `earlier`."""
    return later.revises == earlier.content_id or history.saw(later.order, earlier.order)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What follows for one content from everything known."""

    content_id: bytes
    original: bytes
    """Id of the content that this one revises in the end; its own id when it is an original."""
    retracted: bool
    forgetting: Forgetting
    expires_ms: int | None
    """As published with it: a revision of what expires is published with that expiry, or an earlier one."""
    head: bool
    """Whether it is a current version: hidden and forgotten versions never are."""
    conflict: bool
    """Several current versions stand side by side."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One content of a family, with the facts that are about it alone."""

    publication: Publication
    parent: bytes | None
    """The content that it validly revises."""
    retracted: bool
    forgetting: Forgetting


def judge(family: Sequence[Node], history: History = BY_DEPTH) -> dict[bytes, Verdict]:
    """Decide a whole family: an original and everything that revises it, directly or not.

    Hiding and forgetting pass from a content to whatever revises it. Expiry does not: it would come true later that
    something expires, without anybody's consent, when its author makes known what it revises.
    """
    nodes = {n.publication.content_id: n for n in family}
    found: dict[bytes, Verdict] = {}
    current: list[Publication] = []
    for node in sorted(family, key=lambda n: n.publication.order):
        me = node.publication
        above = found.get(node.parent) if node.parent is not None and node.parent in nodes else None
        retracted, forgetting = node.retracted, node.forgetting
        if above is not None:
            retracted = retracted or above.retracted
            forgetting = _stronger(forgetting, above.forgetting)
        found[me.content_id] = Verdict(
            content_id=me.content_id,
            original=me.content_id if above is None else above.original,
            retracted=retracted,
            forgetting=forgetting,
            expires_ms=me.expires_ms,
            head=False,
            conflict=False,
        )
        if not retracted and forgetting != "carried":
            current.append(me)
    top = heads(current, history)
    for version in top:
        found[version.content_id] = msgspec.structs.replace(found[version.content_id], head=True, conflict=len(top) > 1)
    return found


def _stronger(a: Forgetting, b: Forgetting) -> Forgetting:
    rank: tuple[Forgetting, ...] = ("none", "open", "carried")
    return max(a, b, key=rank.index)


class Contents:
    """The fold in memory: for commands, and the reference that the views are tested against."""

    def __init__(self, history: History = BY_DEPTH) -> None:
        self.history = history
        self.ballots = Ballots(history)
        self.publications: dict[bytes, Publication] = {}
        self.contested: set[bytes] = set()
        self.toggles: dict[bytes, dict[str, Toggle]] = {}

    def apply(self, recorded: ev.Recorded) -> None:
        """Add one event, in any order and any number of times."""
        event, origin = recorded.event, recorded.origin
        self.ballots.apply(recorded)
        if isinstance(event, ev.ContentPublished):
            known = self.publications.get(event.content_id)
            if known is not None and known.order != origin.order:
                self.contested.add(event.content_id)
            if known is None or origin.order < known.order:
                self.publications[event.content_id] = publication(event, origin)
        elif isinstance(event, ev.ContentRetracted | ev.ContentRestored):
            members = self.toggles.setdefault(event.content_id, {})
            last = members.get(origin.author)
            if last is None or last.order < origin.order:
                members[origin.author] = Toggle(origin.order, isinstance(event, ev.ContentRetracted))

    def parent(self, content_id: bytes) -> bytes | None:
        """The content that this one validly revises."""
        me = self.publications[content_id]
        target = None if me.revises is None else self.publications.get(me.revises)
        return target.content_id if target is not None and is_revision_of(me, target) else None

    def original(self, content_id: bytes) -> bytes:
        """The root of the family."""
        while (above := self.parent(content_id)) is not None:
            content_id = above
        return content_id

    def verdicts(self) -> dict[bytes, Verdict]:
        """Everything that follows, for every content."""
        families: dict[bytes, list[Node]] = {}
        standing: dict[bytes, Forgetting] = {}
        for ballot in self.ballots.all():
            for content in ballot.carried:
                standing[content] = "carried"
            if ballot.state == "open":
                for content in ballot.proposal.known:
                    standing.setdefault(content, "open")
        for content_id, known in self.publications.items():
            toggle = self.toggles.get(content_id, {}).get(known.author)
            node = Node(
                publication=known,
                parent=self.parent(content_id),
                retracted=toggle is not None and toggle.hidden,
                forgetting=standing.get(content_id, "none"),
            )
            families.setdefault(self.original(content_id), []).append(node)
        return {i: v for family in families.values() for i, v in judge(family, self.history).items()}

    def verdict(self, content_id: bytes) -> Verdict:
        """What follows for one content.

        Raises:
            UnknownIdError: it was never published, as far as is known here.
        """
        if content_id not in self.publications:
            raise UnknownIdError(f"no content {content_id.hex()} is known here: `ls` lists what there is")
        return self.verdicts()[content_id]


MEMBERSHIP = DCBQueryItem(types=[ev.VaultFounded.TOPIC, ev.MemberAdmitted.TOPIC, ev.MemberRemoved.TOPIC])


def boundary(contents: Collection[bytes] = (), ballots: Collection[bytes] = ()) -> DCBQuery:
    """The events that a command about these contents and ballots depends on: read them, append against them.

    Revisions of the contents are not among them: what they say concerns no earlier version.
    """
    return DCBQuery(items=[*about(contents, ballots), MEMBERSHIP])


def about(contents: Collection[bytes], ballots: Collection[bytes], *, revisions: bool = False) -> list[DCBQueryItem]:
    """What is said about these contents and ballots themselves, and, if wanted, what revises the contents."""
    tags = [*map(ev.content_tag, contents), *map(ev.ballot_tag, ballots)]
    if revisions:
        tags += map(ev.revision_tag, contents)
    return [DCBQueryItem(tags=[tag]) for tag in tags]


def decide_forget(state: Contents, contents: Collection[bytes], *, by: str) -> tuple[bytes, ...] | Ballot:
    """What a request to forget leads to.

    Returns:
        The contents to propose, or the open ballot that asks for all of them already.
    Raises:
        MisuseError: nothing was named.
        UnknownIdError: one of them is not known.
        ForgottenError: all of them are forgotten already.
        PermissionRefusedError: `by` is no member.
    """
    if not contents:
        raise MisuseError("name at least one content to forget")
    _require_member(state, by)
    verdicts = state.verdicts()
    unknown = [c for c in contents if c not in verdicts]
    if unknown:
        raise UnknownIdError(f"no content {unknown[0].hex()} is known here: `ls` lists what there is")
    left = tuple(sorted(c for c in set(contents) if verdicts[c].forgetting != "carried"))
    if not left:
        raise ForgottenError("forgotten already: the members agreed to it before; only the record remains")
    return open_ballot_for(state.ballots, left) or left


def decide_revise(state: Contents, content_id: bytes, *, by: str) -> bytes:
    """The original to name in `revises`.

    Raises:
        UnknownIdError, ForgottenError, PermissionRefusedError (only the author may revise).
    """
    verdict = _own(state, content_id, by, "revise")
    return verdict.original


def decide_retract(state: Contents, content_id: bytes, *, by: str) -> bool:
    """Whether a retraction is to be recorded; False when the content is hidden already.

    Raises:
        UnknownIdError, ForgottenError, PermissionRefusedError (only the author may retract).
    """
    return not _own(state, content_id, by, "retract").retracted


def decide_restore(state: Contents, content_id: bytes, *, by: str) -> bool:
    """Whether a restoration is to be recorded; False when the content is not hidden.

    Raises:
        UnknownIdError, ForgottenError, PermissionRefusedError (only the author may restore).
        ConflictError: what it revises is hidden, so restoring this alone would change nothing.
    """
    verdict = _own(state, content_id, by, "restore")
    toggle = state.toggles.get(content_id, {}).get(by)
    if verdict.retracted and (toggle is None or not toggle.hidden):
        raise ConflictError(f"it is hidden with what it revises: restore {verdict.original.hex()} instead")
    return verdict.retracted


def _own(state: Contents, content_id: bytes, by: str, verb: str) -> Verdict:
    verdict = state.verdict(content_id)
    if verdict.forgetting == "carried":
        raise ForgottenError("the content was forgotten; only its record remains")
    if state.publications[content_id].author != by:
        raise PermissionRefusedError(f"only the author may {verb} a content")
    return verdict


def _require_member(state: Contents, did: str) -> None:
    members = state.ballots.members()
    if members and did not in members:
        raise PermissionRefusedError("only a member of the vault may do this")
