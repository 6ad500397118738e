"""The desk: takes each call, checks verb and limits, has a worker do it, and sends the one reply.

A call with an effect that is asked for again while it runs is not run twice: its reply goes to where it was
asked for last. After that the service remembers it. Running calls are touched by the door's thread only.
"""

from __future__ import annotations

from typing import Any, Final

from walytis_vault.bus import calls as c
from walytis_vault.bus.batcher import Batcher
from walytis_vault.bus.door import Door
from walytis_vault.bus.errors import shield
from walytis_vault.bus.kept_replies import KeptReplies
from walytis_vault.bus.messages import InlinePublish, Published, QueryPage, RequestKey
from walytis_vault.bus.peer import Peer
from walytis_vault.bus.pool import FairPool
from walytis_vault.bus.protocol import Header, Kind, encode
from walytis_vault.bus.request_key import request_key
from walytis_vault.bus.service import VaultService
from walytis_vault.domain.errors import (
    BusyError,
    ConflictError,
    MisuseError,
    PermissionRefusedError,
    VaultError,
)
from walytis_vault.domain.faults import fault

_PUBLISHERS: Final = 3
"""Batches of publishes under way at once: one is encrypted while one is synced and one waits for its block."""
_TOGETHER: Final = 256
"""Small publishes in one batch (a count)."""


class _Running:
    __slots__ = ("asked", "call", "key", "peer")

    def __init__(self, peer: Peer, key: RequestKey, call: c.AnyCall) -> None:
        self.peer = peer
        """Where the reply goes."""
        self.asked = peer
        """Where it counts."""
        self.key = key
        self.call = call


class _Publish:
    """A small publish that waits to be done together with others."""

    __slots__ = ("inline", "name", "running")

    def __init__(self, name: tuple[str, bytes], running: _Running, inline: InlinePublish) -> None:
        self.name = name
        self.running = running
        self.inline = inline


class Desk:
    """Works on calls that have one request and one reply."""

    def __init__(self, door: Door, service: VaultService, pools: dict[c.Lane, FairPool]) -> None:
        self._door = door
        self._service = service
        self._pools = pools
        self.publishes: Batcher[_Publish] = Batcher("publish", _PUBLISHERS, _TOGETHER, self._publish_together)
        self._running: dict[tuple[str, bytes], _Running] = {}
        self._per_client: dict[str, int] = {}
        self._kept = KeptReplies()

    def count(self, name: str) -> int:
        """Calls of a client key that are being worked on."""
        return self._per_client.get(name, 0)

    @property
    def running(self) -> int:
        """Calls that are being worked on (a count)."""
        return len(self._running)

    def check_verb(self, peer: Peer, call: c.Call) -> None:
        """Raises PermissionRefusedError unless the client's key has the verb of the call."""
        if call.VERB not in peer.entry.verbs:
            raise PermissionRefusedError(f"client {peer.entry.name!r} may not {call.VERB}: its key lacks that verb")

    def take(self, peer: Peer, message: Header, call: c.AnyCall) -> None:
        """Work on a call. Raises what the client is told at once."""
        if isinstance(call, c.PublishCall):
            self._check_inline(call, len(message.data))
        key = request_key(peer.entry.name, message, call)
        name = (key.client, key.request_id)
        running = self._running.get(name)
        if running is not None:
            if running.key != key:
                raise ConflictError("this request id is in use for another request: make a new one")
            running.peer = peer
            return
        if self._kept.wants(call) and (kept := self._kept.find(key, call)) is not None:
            self._door.send_encoded(peer, Kind.REPLY, message.id, kept)
            return
        limits = self._door.limits
        if peer.requests >= limits.peer_requests or self.count(key.client) >= limits.client_requests:
            raise BusyError("too many requests at once: wait for replies, then repeat")
        running = self._running[name] = _Running(peer, key, call)
        peer.requests += 1
        self._per_client[key.client] = self.count(key.client) + 1
        data = message.data
        if isinstance(call, c.PublishCall) and call.options.revises is None:
            inline = InlinePublish(options=call.options, data=data, key=key)
            self.publishes.submit(peer.entry.public_key, _Publish(name, running, inline))
            return
        self._submit(name, running, data)

    def _submit(self, name: tuple[str, bytes], running: _Running, data: bytes | memoryview) -> None:
        call = running.call
        lane = "past" if isinstance(call, c.QueryCall) and call.as_of is not None else call.LANE
        self._pools[lane].submit(running.peer.entry.public_key, lambda: self._work(name, running, data))

    def _work(self, name: tuple[str, bytes], running: _Running, data: bytes | memoryview) -> None:
        call, key = running.call, running.key
        if running.peer.gone and not call.EFFECT:
            self._door.post(lambda: self._given_up(name, running, data))
            return
        with shield(lambda e: self._door.post(lambda: self._failed(name, running, e))):
            body = self._encoded(call, data, key if call.EFFECT else None)
            fault("bus.before_reply")
            self._door.post(lambda: self._reply(name, running, body))

    def _given_up(self, name: tuple[str, bytes], running: _Running, data: bytes | memoryview) -> None:
        """Nobody was there to take the reply, unless it was asked for again meanwhile."""
        if running.peer.gone:
            self._done(name, running)
        else:
            self._submit(name, running, data)

    def _encoded(self, call: c.AnyCall, data: bytes | memoryview, key: RequestKey | None) -> bytes:
        cap = self._door.limits.reply
        if isinstance(call, c.QueryCall):
            limit = min(call.limit, self._door.limits.page_rows)
            while True:
                body = encode(self._query(call, limit))
                if len(body) <= self._door.limits.page or limit == 1:
                    break
                limit = max(1, limit // 4)
        else:
            body = encode(self._result(call, data, key))
        if len(body) > cap:
            raise VaultError(f"the reply of {len(body)} bytes is over the limit of {cap}: ask for less")
        return body

    def _query(self, call: c.QueryCall, limit: int) -> QueryPage:
        return self._service.query(
            call.view, limit=limit, cursor=call.cursor, filters=dict(call.filters), as_of=call.as_of
        )

    def _result(self, call: c.AnyCall, data: bytes | memoryview, key: RequestKey | None) -> Any:
        service = self._service
        match call:
            case c.PublishCall():
                return self._publish(call, data, key)
            case c.StatusCall():
                return service.status()
            case c.ForgetCall():
                return service.forget(call.contents, call.reason, key)
            case c.ConsentCall():
                return service.consent(call.ballot_id, key)
            case c.RefuseCall():
                return service.refuse(call.ballot_id, call.reason, key)
            case c.WithdrawCall():
                return service.withdraw(call.ballot_id, key)
            case c.RetractCall():
                return service.retract(call.content_id, key)
            case c.RestoreCall():
                return service.restore(call.content_id, key)
            case c.DropCall():
                return service.drop(call.contents, force=call.force)
            case c.LockCall():
                return service.lock()
            case c.UnlockCall():
                return service.unlock(call.passphrase)
            case c.PassphraseCall():
                return service.change_passphrase(call.old, call.new)
            case c.AuditCall():
                return service.audit(read_data=call.read_data, cursor=call.cursor)
            case c.ReplayCall():
                return service.replay(call.view)
            case c.RetryCall():
                return service.retry(call.view)
            case c.ExportCall():
                return service.export(call.cursor)
            case c.BackupCall():
                return service.backup(call.folder, passphrase=call.passphrase, with_key_file=call.with_key_file)
            case c.InviteCall():
                return service.invite(expires_s=call.expires_s, own_device=call.own_device)
            case c.InvitationsCall():
                return service.invitations()
            case c.RevokeInvitationCall():
                return service.revoke_invitation(call.invitation_id)
            case c.RemoveCall():
                return service.remove(call.did, call.reason, device=call.device, key=key)
            case _:
                raise MisuseError(f"{type(call).__name__} is not a call with one reply")

    def _check_inline(self, call: c.PublishCall, size: int) -> None:
        if size > self._door.limits.inline:
            raise MisuseError(f"a content over {self._door.limits.inline} bytes must be uploaded as a stream")
        if call.size is not None and call.size != size:
            raise MisuseError(f"{size} bytes came and {call.size} were announced: nothing was published")

    def _publish_together(self, batch: list[_Publish]) -> None:
        """On a worker: one wait for disk and chain, and one word to the door, for all of them."""
        done: list[bytes | VaultError] = []

        def failed(error: VaultError) -> None:
            done[:] = [error] * len(batch)

        with shield(failed):
            for result in self._service.publish_together([p.inline for p in batch]):
                done.append(result if isinstance(result, VaultError) else encode(result))
            fault("bus.before_reply")
        self._door.post(lambda: self._reply_all(batch, done))

    def _reply_all(self, batch: list[_Publish], done: list[bytes | VaultError]) -> None:
        for publish, result in zip(batch, done, strict=True):
            if isinstance(result, bytes):
                self._reply(publish.name, publish.running, result)
            else:
                self._failed(publish.name, publish.running, result)

    def _publish(self, call: c.PublishCall, data: bytes | memoryview, key: RequestKey | None) -> Published:
        session = self._service.begin_publish(call.options, key)
        if isinstance(session, Published):
            return session
        try:
            if len(data):
                session.write(data)
            return session.commit()
        except BaseException:
            session.abort()
            raise

    def _reply(self, name: tuple[str, bytes], running: _Running, body: bytes) -> None:
        self._done(name, running)
        if self._kept.wants(running.call):
            self._kept.keep(running.key, running.call, body)
        self._door.send_encoded(running.peer, Kind.REPLY, name[1], body)

    def _failed(self, name: tuple[str, bytes], running: _Running, error: VaultError) -> None:
        self._done(name, running)
        self._door.send_error(running.peer, name[1], error)

    def _done(self, name: tuple[str, bytes], running: _Running) -> None:
        if self._running.get(name) is running:
            del self._running[name]
            left = self._per_client[name[0]] - 1
            if left:
                self._per_client[name[0]] = left
            else:
                del self._per_client[name[0]]
        running.asked.requests -= 1
