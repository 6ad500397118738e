"""A complete `VaultService` in memory: what the bus's contract tests run on.

One member, so that a ballot carries at once unless `electorate` names more. Effects are remembered by
`RequestKey` together with their reply, as the port asks. Nothing is stored on disk.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import msgspec

from support.memory_safe import MemorySafe
from support.memory_streams import PIECE, MemoryReader, MemorySession
from support.memory_views import VIEWS, MemoryViews
from walytis_vault.bus.messages import (
    BackupInfo,
    BallotInfo,
    Change,
    ExportPage,
    InlinePublish,
    InvitationInfo,
    Published,
    PublishOptions,
    RequestKey,
)
from walytis_vault.bus.service import never
from walytis_vault.domain.errors import (
    ConflictError,
    ForgottenError,
    MisuseError,
    RetractedError,
    TimedOutError,
    UnknownIdError,
    VaultError,
)

T = TypeVar("T")


class MemoryService(MemoryViews, MemorySafe):
    """See the module. `latency` (seconds) is added to each commit."""

    def __init__(self, *, electorate: tuple[str, ...] = ("did:me",), latency: float = 0.0) -> None:
        self.electorate = electorate
        self.latency = latency
        self.keep_bytes = True
        self.contents: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.pretended: set[str] = set()
        self.away: set[str] = set()
        """Contents that no peer brings, until they are taken out of here."""
        self.coming: set[str] = set()
        """Contents of which nothing more comes than the first piece, until they are taken out of here."""
        self.filler = bytes(range(256)) * (PIECE // 256)
        self.ballots: dict[str, BallotInfo] = {}
        self.events: list[Change] = []
        self.invited: list[InvitationInfo] = []
        self.members = {did: {"did": did, "state": "member"} for did in electorate}
        self.replies: dict[tuple[str, bytes], tuple[RequestKey, Any]] = {}
        self.sessions: set[MemorySession] = set()
        self.readers: set[MemoryReader] = set()
        self.aborted = 0
        self.effects = 0
        self.change_reads = 0
        self.bytes_read = 0
        self._listeners: list[Callable[[int], None]] = []
        self._condition = threading.Condition(threading.RLock())

    def pretend(self, size: int) -> str:
        """A content of `size` bytes that takes no memory: the filler, over and over."""
        session = MemorySession(self, PublishOptions(name="pretended"), None)
        with self._condition:
            self.pretended.add(session.content_id)
            self.commit_publish(session, PublishOptions(name="pretended"), None, None)
            self.contents[session.content_id]["size"] = size
        return session.content_id

    def begin_publish_row(self, number: int) -> None:
        """A small content named by a number."""
        session = MemorySession(self, PublishOptions(name=str(number)), None)
        self.commit_publish(session, PublishOptions(name=str(number)), None, b"")

    def begin_publish(self, options: PublishOptions, key: RequestKey | None = None) -> MemorySession | Published:
        with self._condition:
            if key is not None and (found := self._known(key)) is not None:
                return cast(Published, found)
            if options.revises is not None:
                self._content(options.revises)
            session = MemorySession(self, options, key)
            self.sessions.add(session)
            return session

    def publish_together(self, wanted: Sequence[InlinePublish]) -> list[Published | VaultError]:
        if self.latency:
            threading.Event().wait(self.latency)
        results: list[Published | VaultError] = []
        for inline in wanted:
            try:
                session = self.begin_publish(inline.options, inline.key)
                if isinstance(session, MemorySession):
                    session.write(inline.data)
                    results.append(session.commit(latency=0))
                else:
                    results.append(session)
            except VaultError as e:
                results.append(e)
        return results

    def commit_publish(
        self,
        session: MemorySession,
        options: PublishOptions,
        key: RequestKey | None,
        data: bytes | None,
        *,
        latency: float | None = None,
    ) -> Published:
        if wait := self.latency if latency is None else latency:
            threading.Event().wait(wait)

        def effect() -> Published:
            content_id = session.content_id
            if data is not None and self.keep_bytes:
                self.blobs[content_id] = data
            else:
                self.pretended.add(content_id)
            row = {
                "content_id": content_id,
                "state": "available",
                "author": "did:me",
                "time": "2026-01-01T00:00:00Z",
                "size": session.size,
                "name": options.name,
                "media_type": options.media_type,
                "labels": list(options.labels),
                "revises": options.revises,
                "expires_ms": options.expires_ms,
                "digest": session.digest,
            }
            self.contents[content_id] = row
            return Published(content_id=content_id, position=self._event("content-published/1", content_id))

        return self._once(key, effect)

    def open_content(self, content_id: str, *, timeout: float, given_up: Callable[[], bool] = never) -> MemoryReader:
        self.check_unlocked()
        until = time.monotonic() + timeout
        while content_id in self.away:
            if given_up() or time.monotonic() >= until:
                raise TimedOutError("the content is still being fetched")
            threading.Event().wait(0.01)
        with self._condition:
            row = self._content(content_id)
            if row["state"] == "forgotten":
                raise ForgottenError("the content was forgotten")
            if row["state"] == "retracted":
                raise RetractedError("the author retracted the content")
            return MemoryReader(self, content_id)

    def forget(self, contents: tuple[str, ...], reason: str, key: RequestKey | None = None) -> BallotInfo:
        def effect() -> BallotInfo:
            for content_id in contents:
                self._content(content_id)
            ballot_id = secrets.token_hex(16)
            for content_id in contents:
                self.contents[content_id]["state"] = "forgetting"
            position = self._event("forgetting-proposed/1", *contents, ballot_id)
            ballot = BallotInfo(
                ballot_id=ballot_id,
                state="open",
                contents=contents,
                electorate=self.electorate,
                consents=("did:me",),
                position=position,
            )
            return self._settle(ballot)

        return self._once(key, effect)

    def consent(self, ballot_id: str, key: RequestKey | None = None) -> BallotInfo:
        def effect() -> BallotInfo:
            ballot = self._open_ballot(ballot_id)
            # This node has one member: whoever consents through it is the next who has not.
            next_one = next(d for d in ballot.electorate if d not in ballot.consents)
            position = self._event("forgetting-consented/1", ballot_id)
            consents = (*ballot.consents, next_one)
            return self._settle(msgspec.structs.replace(ballot, consents=consents, position=position))

        return self._once(key, effect)

    def refuse(self, ballot_id: str, reason: str, key: RequestKey | None = None) -> BallotInfo:
        return self._once(key, lambda: self._end_ballot(ballot_id, "refused", "forgetting-refused/1"))

    def withdraw(self, ballot_id: str, key: RequestKey | None = None) -> BallotInfo:
        return self._once(key, lambda: self._end_ballot(ballot_id, "withdrawn", "forgetting-withdrawn/1"))

    def retract(self, content_id: str, key: RequestKey | None = None) -> int:
        return self._once(key, lambda: self._set_state(content_id, "retracted", "content-retracted/1"))

    def restore(self, content_id: str, key: RequestKey | None = None) -> int:
        return self._once(key, lambda: self._set_state(content_id, "available", "content-restored/1"))

    def audit(self, *, read_data: bool, cursor: str | None = None) -> dict[str, Any]:
        number = int(cursor or 0)
        page = {"contents": [number], "ballots": [], "cursor": str(number + 1) if number < 2 else None}
        return page if cursor else {"ok": True, "events": self.position, "read_data": read_data, **page}

    def replay(self, view: str | None) -> dict[str, Any]:
        return {"views": [view] if view else list(VIEWS), "position": self.position}

    def retry(self, view: str | None) -> dict[str, Any]:
        return {name: {"retried": 0, "parked": 0, "error": None} for name in ([view] if view else VIEWS)}

    def export(self, cursor: str | None) -> ExportPage:
        page = int(cursor or 0)
        if page < 2:
            return ExportPage(lines=b"line %d\n" % page, cursor=str(page + 1))
        return ExportPage(lines=b"end\n", batches=2, digest="d", root="r", vault_id="vault-in-memory")

    def backup(self, folder: str, *, passphrase: str | None, with_key_file: bool) -> BackupInfo:
        size = len(passphrase or "") + with_key_file
        return BackupInfo(
            folder=folder, vault_id="vault-in-memory", position=self.position, contents=0, files=1, size=size, copied=0
        )

    def invite(self, *, expires_s: float, own_device: bool = False) -> str:
        made = InvitationInfo(
            invitation_id=secrets.token_hex(8), state="open", own_device=own_device, created="", expires=""
        )
        self.invited.append(made)
        return f"invitation-{made.invitation_id}-{int(expires_s)}"

    def invitations(self) -> list[InvitationInfo]:
        return list(self.invited)

    def revoke_invitation(self, invitation_id: str) -> InvitationInfo:
        for number, known in enumerate(self.invited):
            if known.invitation_id == invitation_id:
                self.invited[number] = msgspec.structs.replace(known, state="revoked")
                return self.invited[number]
        raise UnknownIdError(f"there is no invitation {invitation_id}")

    def remove(self, did: str, reason: str = "", *, device: bool = False, key: RequestKey | None = None) -> int:
        def effect() -> int:
            if did not in self.members or device:
                raise UnknownIdError(f"there is no member {did}")
            self.members[did].update(state="removed", reason=reason)
            return self._event("member-removed/1", did)

        return self._once(key, effect)

    def advance(self, count: int = 1, *, label: str = "tick") -> int:
        """Append events that concern nothing, for tests of subscriptions."""
        with self._condition:
            for _ in range(count):
                self._event(f"{label}/1")
            return self.position

    def _once(self, key: RequestKey | None, effect: Callable[[], T]) -> T:
        with self._condition:
            if key is not None and (found := self._known(key)) is not None:
                return cast(T, found)
            result = effect()
            self.effects += 1
            if key is not None:
                self.replies[key.client, key.request_id] = (key, result)
        return result

    def _known(self, key: RequestKey) -> object | None:
        found = self.replies.get((key.client, key.request_id))
        if found is None:
            return None
        if found[0] != key:
            raise ConflictError("this request id was used for another request")
        return cast(object, found[1])

    def _content(self, content_id: str) -> dict[str, Any]:
        row = self.contents.get(content_id)
        if row is None:
            raise UnknownIdError(f"there is no content {content_id}")
        return row

    def _open_ballot(self, ballot_id: str) -> BallotInfo:
        ballot = self.ballots.get(ballot_id)
        if ballot is None:
            raise UnknownIdError(f"there is no ballot {ballot_id}")
        if ballot.state != "open":
            raise MisuseError(f"the ballot is {ballot.state}")
        return ballot

    def _settle(self, ballot: BallotInfo) -> BallotInfo:
        if set(ballot.consents) >= set(ballot.electorate):
            for content_id in ballot.contents:
                self.contents[content_id]["state"] = "forgotten"
                self.contents[content_id]["name"] = None
                self.blobs.pop(content_id, None)
            ballot = msgspec.structs.replace(ballot, state="carried", receipts=("did:me",))
        self.ballots[ballot.ballot_id] = ballot
        return ballot

    def _end_ballot(self, ballot_id: str, state: Any, topic: str) -> BallotInfo:
        ballot = self._open_ballot(ballot_id)
        position = self._event(topic, ballot_id)
        for content_id in ballot.contents:
            self.contents[content_id]["state"] = "available"
        ended = self.ballots[ballot_id] = msgspec.structs.replace(ballot, state=state, position=position)
        return ended

    def _set_state(self, content_id: str, state: str, topic: str) -> int:
        self._content(content_id)["state"] = state
        return self._event(topic, content_id)
