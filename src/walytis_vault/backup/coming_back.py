"""What the node of a restored home does before it serves anything.

A backup is old: since then contents were forgotten, and this very device may have written batches that the backup
does not hold. So, as a mere reader whom nobody can ask: hear from another member's node, forget what was forgotten,
then replace the signing key, which also fences off any other copy of this home. Each step can be repeated.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem

from walytis_vault.adapters.crypto.signing import HybridSigner
from walytis_vault.adapters.exchange.tunnels import PeerTunnels
from walytis_vault.adapters.identity import IdentityKeeper
from walytis_vault.adapters.storage.atomic_file import read_file, remove_file
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.backup.restore import RestoredNote
from walytis_vault.bus.security import bus_keys
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.claims import prove_possession
from walytis_vault.domain.errors import (
    PermissionRefusedError,
    StorageError,
    TimedOutError,
    TransportError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId, KeyId
from walytis_vault.domain.ports import FileSystem
from walytis_vault.founding import BUS_SECRET, IDENTITY_SECRET, SIGNING_SECRET
from walytis_vault.home import Home, VaultConfig
from walytis_vault.peers import protocol as p
from walytis_vault.peers.hub import address_book
from walytis_vault.peers.link import PeerLink
from walytis_vault.reading import read_families

NEXT_SIGNING_SECRET: Final = "signing-next"  # noqa: S105 - the name of an entry
HEAR_S: Final = 60.0
"""How long the others are tried."""
ASK_S: Final = 10.0
PAUSE_S: Final = 0.5
ROUNDS: Final = 100_000
BALLOTS_AT_ONCE: Final = 200

_log = logging.getLogger(__name__)
OpenLog = Callable[[HybridSigner], VaultLog]


class ComingBack:
    """For the composition root: `run` before anything is served."""

    def __init__(
        self,
        home: Home,
        config: VaultConfig,
        runtime: WalytisRuntime,
        store: DiskContentStore,
        sealed: SecretsFile,
        open_log: OpenLog,
        fs: FileSystem,
    ) -> None:
        """`open_log` opens the vault's log with a signing key; it is closed again here."""
        self._home, self._config, self._runtime, self._store = home, config, runtime, store
        self._sealed, self._open_log, self._fs = sealed, open_log, fs

    def run(self) -> None:
        """Come back; nothing happens in a home that was not restored, or has come back already.

        Raises:
            TimedOutError: no other member's node answered; nothing is served.
            PermissionRefusedError: another copy of this home has come back before. StorageError.
        """
        note = self._note()
        if note is None:
            return
        secrets = self._sealed.open_secrets()
        log = self._open_log(HybridSigner.from_private_bytes(secrets[SIGNING_SECRET]))
        try:
            log.reconciler.catch_up()
            self._hear(log, secrets, alone=note.alone)
            fault("coming_back.after_hearing")
            self._forget(log)
            fault("coming_back.after_forgetting")
            with log.index.database.transaction() as connection:
                log.index.next_epoch(connection)  # views that lie elsewhere are of another state of the log
            self._new_key(log, secrets)
        finally:
            log.close()
        remove_file(self._fs, self._home.restored_note)

    def _note(self) -> RestoredNote | None:
        raw = read_file(self._fs, self._home.restored_note, limit=4096)
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw, type=RestoredNote)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise StorageError(f"{self._home.restored_note} is damaged: restore the backup again") from e

    # -- hearing ------------------------------------------------------------------------------------------------

    def _hear(self, log: VaultLog, secrets: dict[str, bytes], *, alone: bool) -> None:
        """Take everything that one other member's node has, at least."""
        until = time.monotonic() + HEAR_S
        tunnels = PeerTunnels(self._runtime.tunnels(), self._config.vault_id)
        while others := self._others(log):
            for keys in others:
                try:
                    self._pull(log, tunnels, keys, secrets[BUS_SECRET])
                except VaultError as e:
                    _log.info("coming back: %s does not answer: %s", keys.device, e)
                    continue
                return
            if alone:
                _log.warning("coming back alone: what was forgotten since the backup is not known")
                return
            if time.monotonic() > until:
                raise TimedOutError(
                    "this home was restored from a backup, and must hear from another member's node first, to forget"
                    " what was forgotten since: start one of them, then start this one again; or restore with --alone"
                )
            time.sleep(PAUSE_S)

    def _others(self, log: VaultLog) -> list[ev.DeviceKeys]:
        return [keys for keys in log.membership().standing() if keys.device != self._config.device]

    def _pull(self, log: VaultLog, tunnels: PeerTunnels, keys: ev.DeviceKeys, bus_secret: bytes) -> None:
        if keys.peer_id not in self._runtime.peers():
            for address in address_book(self._home, self._fs).of(keys.peer_id):
                with contextlib.suppress(TransportError):
                    self._runtime.connect(f"{address}/p2p/{keys.peer_id}")
                    break
            else:
                raise TransportError("it is at none of its known addresses")
        link = PeerLink(tunnels.dial(keys.peer_id), server_key=keys.bus, keys=bus_keys(bus_secret))
        try:
            for _ in range(ROUNDS):
                before = log.index.last_numbers({k.device for k in log.membership().keys.values()})
                reply, envelopes = link.ask(p.Pull(have=before), timeout=ASK_S)
                if not isinstance(reply, p.Batches):
                    raise UntrustedInputError("a peer's reply does not fit the request")
                if envelopes:
                    log.reconciler.accept(envelopes)
                after = log.index.last_numbers({k.device for k in log.membership().keys.values()})
                if not reply.more or before == after:
                    return
        finally:
            link.close()

    # -- forgetting ---------------------------------------------------------------------------------------------

    def _forget(self, log: VaultLog) -> None:
        """Erase whatever carried ballots say, before anything is served. Receipts follow when the node runs."""
        query = DCBQuery(items=[DCBQueryItem(types=[ev.ForgettingProposed.TOPIC])])
        ballots: list[bytes] = []
        for found in log.recorder.read(query):
            event = ev.PRODUCT_EVENTS.decode(found.event.type, found.event.data)
            assert isinstance(event, ev.ForgettingProposed)
            ballots.append(event.ballot_id)
        for start in range(0, len(ballots), BALLOTS_AT_ONCE):
            state = read_families(log.recorder, ballots=ballots[start : start + BALLOTS_AT_ONCE]).state
            gone = {c for c, verdict in state.verdicts().items() if verdict.forgetting == "carried"}
            gone |= {c for ballot in state.ballots.all() for c in ballot.carried}
            self._erase(gone)

    def _erase(self, contents: Iterable[bytes]) -> None:
        left = tuple(ContentId(c) for c in sorted(contents) if not self._store.erased(ContentId(c)))
        if left:
            self._store.erase(left)

    # -- the new key --------------------------------------------------------------------------------------------

    def _new_key(self, log: VaultLog, secrets: dict[str, bytes]) -> None:
        """Announce a fresh signing key in place of the one in the backup."""
        old = HybridSigner.from_private_bytes(secrets[SIGNING_SECRET])
        if NEXT_SIGNING_SECRET not in secrets:
            secrets = {**secrets, NEXT_SIGNING_SECRET: HybridSigner.generate().private_bytes()}
            self._sealed.seal_secrets(secrets)
        fresh = HybridSigner.from_private_bytes(secrets[NEXT_SIGNING_SECRET])
        membership = log.membership()
        if fresh.key_id not in membership.keys:
            if refusal := membership.refusal(old.key_id, self._config.device):
                raise PermissionRefusedError(
                    f"this restored home may not write to the vault: {refusal}. Another copy of it came back before,"
                    " or the member was removed: remove this home, and join anew"
                )
            keys = msgspec.structs.replace(
                membership.keys[KeyId(old.key_id)],
                ed25519=fresh.ed25519_public,
                ml_dsa_65=fresh.ml_dsa_65_public,
                peer_id=self._runtime.peer_id,
            )
            assert key_id_of_device(keys) == fresh.key_id
            keys = prove_possession(keys, self._config.vault_id, fresh)
            identity = IdentityKeeper.open(self._home.identity, secrets[IDENTITY_SECRET])
            certificate = identity.certify(msgspec.msgpack.encode(keys))
            identity.close()
            log.writer.start()
            event = ev.KeyAnnounced(keys=keys, supersedes=old.key_id, certificate=certificate)
            log.recorder.append([ev.to_dcb(event)])
            fault("coming_back.after_announcement")
        kept = {**secrets, SIGNING_SECRET: secrets[NEXT_SIGNING_SECRET]}
        del kept[NEXT_SIGNING_SECRET]
        self._sealed.seal_secrets(kept)
