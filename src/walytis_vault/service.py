"""The application service: one method for each verb of the bus, over log, store and views.

Commands read what they decide on from the log, let the domain decide, and append on that condition; queries go
to the views after these include everything that was recorded when the query came (read your writes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from walytis_vault.adapters.crypto.descriptor import open_descriptor
from walytis_vault.adapters.identity import check_certificate
from walytis_vault.adapters.storage.ciphertext_writer import CiphertextWriter
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.audit import Repair, audit_vault
from walytis_vault.audit_pages import AuditPages
from walytis_vault.bus.messages import (
    BackupInfo,
    Change,
    Dropped,
    ExportPage,
    InlinePublish,
    InvitationInfo,
    LockState,
    Published,
    PublishOptions,
    QueryPage,
    RequestKey,
    Status,
    ViewStatus,
)
from walytis_vault.bus.service import never
from walytis_vault.commands import Commands
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import decide_restore, decide_retract
from walytis_vault.domain.errors import (
    ForgottenError,
    NotYetAvailableError,
    RetractedError,
    VaultError,
)
from walytis_vault.domain.ids import ID_BYTES, ContentId, Root, parse_content_id
from walytis_vault.domain.ports import Clock, ContentReader, Randomness
from walytis_vault.eraser import Eraser
from walytis_vault.health import Health
from walytis_vault.home import VaultConfig
from walytis_vault.members import MemberDesk
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.publishing import Publication, check_expiry
from walytis_vault.publishing_together import publish_together
from walytis_vault.reading import Reading, read_state
from walytis_vault.safekeeping import Safekeeping

VIEWS_WAIT_S: Final = 5.0
"""How long a query waits for the views to include what was recorded before it, and for one that is being built."""
VERSION: Final = "0.1.0"


class NodeService(Commands):
    """Implements `bus.service.VaultService` for one vault on this node. Safe for many threads."""

    def __init__(
        self,
        config: VaultConfig,
        log: VaultLog,
        store: DiskContentStore,
        views: ProjectionHost,
        eraser: Eraser,
        *,
        network: str,
        clock: Clock,
        randomness: Randomness,
        peers: Callable[[], Sequence[str]],
        fetch: Callable[[ContentId, float, bool, Callable[[], bool]], CiphertextWriter | None],
        members: MemberDesk,
        safekeeping: Safekeeping,
        repair: Repair,
        export: Callable[[str | None], ExportPage],
        backup: Callable[[str, str | None, bool], BackupInfo],
        health: Health,
    ) -> None:
        """For the composition root."""
        super().__init__(config, log, store, eraser, clock=clock, randomness=randomness)
        self._views = views
        self._network = network
        self._peers = peers
        self._fetch = fetch
        self._repair = repair
        self._audit_pages = AuditPages()
        self._members = members
        self._safekeeping = safekeeping
        self._export = export
        self._backup = backup
        self._health = health

    # -- contents -----------------------------------------------------------------------------------------------

    def begin_publish(self, options: PublishOptions, key: RequestKey | None = None) -> Publication | Published:
        """See `VaultService.begin_publish`."""
        if key is not None and (reply := self._kept(key)) is not None:
            published = msgspec.msgpack.decode(reply, type=Published)
            self._vault_log.wait_for(published.position)
            return published
        check_expiry(options.expires_ms, self._clock.wall_ms())
        return Publication(
            self._log,
            self._store,
            vault_id=self._config.vault_id,
            author=self._me,
            nonce=self._randomness.token(ID_BYTES),
            options=options,
            key=key,
        )

    def publish_together(self, wanted: Sequence[InlinePublish]) -> list[Published | VaultError]:
        """See `VaultService.publish_together`."""
        return publish_together(
            self._vault_log,
            self._store,
            wanted,
            vault_id=self._config.vault_id,
            author=self._me,
            clock=self._clock,
            randomness=self._randomness,
        )

    def open_content(self, content_id: str, *, timeout: float, given_up: Callable[[], bool] = never) -> ContentReader:
        """See `VaultService.open_content`.

        Raises:
            UnknownIdError, ForgottenError, RetractedError, NotYetAvailableError, DamagedContentError, LockedError.
        """
        wanted = parse_content_id(content_id)
        reading = read_state(self._log, [wanted])
        verdict = reading.state.verdict(wanted)
        publication, event = reading.state.publications[wanted], reading.published[wanted]
        if verdict.forgetting == "carried" or self._store.erased(wanted):
            raise ForgottenError(self._why_forgotten(wanted, reading))
        if verdict.expires_ms is not None and verdict.expires_ms <= self._clock.wall_ms():
            raise ForgottenError(f"content {content_id} expired, as its publisher declared; only its record remains")
        if verdict.retracted:
            raise RetractedError(f"content {content_id} was retracted by its author, who alone can restore it")
        author, root, padded = publication.author, Root(publication.root), publication.padded_length
        if (key := self._store.content_key(wanted, with_bytes=True)) is not None:
            length = open_descriptor(key, wanted, event.descriptor).length
            return self._store.reader(wanted, author=author, root=root, length=length, padded_length=padded, key=key)
        coming = self._fetch(wanted, timeout, False, given_up)
        descriptor = self._store.open_descriptor(wanted, event.descriptor)
        if descriptor is None:
            raise NotYetAvailableError(f"the key of content {content_id} is not on this node yet")
        if coming is None:
            return self._store.reader(wanted, author=author, root=root, length=descriptor.length, padded_length=padded)
        return self._store.incoming_reader(
            wanted,
            lambda begun: self._fetch(wanted, timeout, begun, given_up),
            author=author,
            root=root,
            length=descriptor.length,
            padded_length=padded,
        )

    def _why_forgotten(self, content_id: bytes, reading: Reading) -> str:
        for ballot in reading.state.ballots.all():
            if ballot.carried:
                return (
                    f"content {content_id.hex()} was forgotten by ballot {ballot.ballot_id.hex()}, to which"
                    f" {_count(len(ballot.consents))} consented; only its record remains"
                )
        return f"content {content_id.hex()} was forgotten; only its record remains"

    def retract(self, content_id: str, key: RequestKey | None = None) -> int:
        """See `VaultService.retract`."""
        wanted = parse_content_id(content_id)

        def decide(reading: Reading) -> Sequence[ev.Event]:
            changes = decide_retract(reading.state, wanted, by=self._me)
            return [ev.ContentRetracted(content_id=wanted)] if changes else []

        return self._command(decide, contents=[wanted], key=key)[0]

    def restore(self, content_id: str, key: RequestKey | None = None) -> int:
        """See `VaultService.restore`."""
        wanted = parse_content_id(content_id)

        def decide(reading: Reading) -> Sequence[ev.Event]:
            changes = decide_restore(reading.state, wanted, by=self._me)
            return [ev.ContentRestored(content_id=wanted)] if changes else []

        return self._command(decide, contents=[wanted], key=key)[0]

    # -- queries ------------------------------------------------------------------------------------------------

    def query(
        self,
        view: str,
        *,
        limit: int | None,
        cursor: str | None,
        filters: dict[str, Any],
        as_of: int | str | None = None,
    ) -> QueryPage:
        """See `VaultService.query`."""
        self._views.row_type(view)
        if as_of is None:
            self.wait_for(self._vault_log.index.horizon, timeout=VIEWS_WAIT_S)
            self._views.wait_built(view, timeout=VIEWS_WAIT_S)
            page = self._views.query(view, limit=limit, cursor=cursor, filters=filters)
        else:
            page = self._views.query_as_of(view, as_of, limit=limit, cursor=cursor, filters=filters)
        rows = tuple(msgspec.to_builtins(row) for row in page.rows)
        return QueryPage(rows=rows, cursor=page.cursor, position=page.position)

    def changes(self, view: str, *, after: int, limit: int, filters: dict[str, Any]) -> tuple[list[Change], int]:
        """See `VaultService.changes`."""
        found, upto = self._views.changes(view, after=after, limit=limit, filters=filters)
        return [Change(**msgspec.structs.asdict(change)) for change in found], upto

    def on_advance(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """See `VaultService.on_advance`."""
        return self._views.on_advance(callback)

    def wait_for(self, position: int, *, timeout: float) -> int:
        """See `VaultService.wait_for`."""
        return self._views.wait(position, timeout=timeout)

    def status(self) -> Status:
        """See `VaultService.status`."""
        index = self._vault_log.index
        states = self._views.status()
        details = self._health.details()
        failed = {name: state.error for name, state in states.items() if state.error}
        details["rebuilding"] = {name: s.rebuilding for name, s in states.items() if s.rebuilding is not None}
        details["parked"] = {name: s.parked for name, s in states.items() if s.parked}
        details["errors"] = {**self._health.errors(), **{f"view {name}": error for name, error in failed.items()}}
        details["problems"] = self._health.problems(failed)
        return Status(
            vault_id=self._config.vault_id,
            did=self._me,
            device=self._config.device,
            name=self._config.name,
            position=index.horizon,
            peers=tuple(self._peers()),
            views={name: ViewStatus(**msgspec.structs.asdict(state)) for name, state in states.items()},
            version=VERSION,
            network=self._network,
            locked=self._safekeeping.locked,
            blocks=index.verdict_counts(),
            details=details,
        )

    def audit(self, *, read_data: bool, cursor: str | None = None) -> dict[str, Any]:
        """See `VaultService.audit`."""
        if cursor is not None:
            return self._audit_pages.page(cursor)
        return audit_vault(
            self._vault_log,
            self._store,
            self._audit_pages,
            device=self._config.device,
            read_data=read_data,
            check_certificate=check_certificate,
            repair=self._repair,
        )

    def replay(self, view: str | None) -> dict[str, Any]:
        """See `VaultService.replay`."""
        if view is not None:
            self._views.live(view)
        names = [view] if view is not None else list(self._views.folded)
        horizon = self._vault_log.index.horizon
        self.wait_for(horizon, timeout=VIEWS_WAIT_S)
        before = self._views.status()
        self._views.rebuild(*names)
        after = self._views.status()
        return {
            name: {
                "position": after[name].position,
                "hash": after[name].hash,
                "hash_before": before[name].hash,
                "equal": after[name].hash == before[name].hash,
            }
            for name in names
        }

    def retry(self, view: str | None) -> dict[str, Any]:
        """See `VaultService.retry`."""
        if view is not None:
            self._views.live(view)
        report: dict[str, Any] = {}
        for name in [view] if view is not None else self._views.folded:
            before = len(self._views.parked(name))
            self._views.retry(name)
            left = self._views.parked(name)
            error = f"position {left[0][0]}: {left[0][1]}" if left else None
            report[name] = {"retried": max(0, before - len(left)), "parked": len(left), "error": error}
        return report

    # -- this node's own copy -----------------------------------------------------------------------------------

    def drop(self, contents: tuple[str, ...], *, force: bool) -> Dropped:
        """See `VaultService.drop`."""
        return self._safekeeping.drop(contents, force=force)

    def lock(self) -> LockState:
        """See `VaultService.lock`."""
        return self._safekeeping.lock()

    def unlock(self, passphrase: str) -> LockState:
        """See `VaultService.unlock`."""
        return self._safekeeping.unlock(passphrase)

    def change_passphrase(self, old: str | None, new: str | None) -> LockState:
        """See `VaultService.change_passphrase`."""
        return self._safekeeping.change_passphrase(old, new)

    # -- the record as files ---------------------------------------------------------------------------------------

    def export(self, cursor: str | None) -> ExportPage:
        """See `VaultService.export`."""
        return self._export(cursor)

    def backup(self, folder: str, *, passphrase: str | None, with_key_file: bool) -> BackupInfo:
        """See `VaultService.backup`."""
        return self._backup(folder, passphrase, with_key_file)

    # -- members ------------------------------------------------------------------------------------------------

    def invite(self, *, expires_s: float, own_device: bool = False) -> str:
        """See `VaultService.invite`. A locked node makes no new secrets."""
        self._safekeeping.check_unlocked()
        return self._members.invite(expires_s, own_device=own_device)

    def invitations(self) -> list[InvitationInfo]:
        """See `VaultService.invitations`."""
        return self._members.invitations()

    def revoke_invitation(self, invitation_id: str) -> InvitationInfo:
        """See `VaultService.revoke_invitation`."""
        return self._members.revoke_invitation(invitation_id)

    def remove(self, did: str, reason: str = "", *, device: bool = False, key: RequestKey | None = None) -> int:
        """See `VaultService.remove`."""
        return self._members.remove(did, reason, device=device, key=key)


def _count(count: int) -> str:
    return "its only member" if count == 1 else f"{count} members"
