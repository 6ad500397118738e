"""What the peer door answers: greetings, batches, ciphertext, keys for one request; and the invited.

Members' devices get what the log says they may have. A content under a ballot goes to nobody outside the
ballot's electorate, a forgotten one to nobody. The invited get the chain and a place in it, nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from walytis_vault.adapters.crypto.ciphertext_root import segment_count
from walytis_vault.adapters.exchange.key_transfer import KeyAsk, is_signed, seal_key
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.errors import (
    ForgottenError,
    LockedError,
    MisuseError,
    NotYetAvailableError,
    PermissionRefusedError,
    TransportError,
)
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.limits import SEGMENT_BYTES
from walytis_vault.domain.ports import Clock, Verifier
from walytis_vault.peers import protocol as p
from walytis_vault.peers.blocks import BlockFile, files_for
from walytis_vault.peers.network import PeerNetwork
from walytis_vault.reading import read_state

STANDING_S: Final = 1.0
"""How long a standing is remembered while the log does not grow."""
STANDINGS: Final = 4096

Answered = tuple[p.Reply, Sequence[bytes]]
InvitedDesk = Callable[[bytes, p.Request], Answered]
Offer = Callable[[bytes, ContentId], tuple[bytes, bytes]]
"""(CURVE key of the device, content) -> session, key."""


class PeerDesk:
    """Answers one request at a time for each worker of the door."""

    def __init__(
        self,
        log: VaultLog,
        store: DiskContentStore,
        network: PeerNetwork,
        *,
        vault_id: str,
        device: str,
        verifier: Verifier,
        clock: Clock,
        knows_invited: Callable[[bytes], bool],
        invited: InvitedDesk,
        block_file: BlockFile = lambda _cid: None,
    ) -> None:
        """Bind the parts together.

        Args:
            invited: answers those whose key belongs to an invitation.
            block_file: the file of a known block of the vault's chain, by its checked content id.
        """
        self._offer: Offer = _no_offer
        self._block_file = block_file
        self._log, self._store, self._network = log, store, network
        self._vault_id, self._device = vault_id, device
        self._verifier, self._clock = verifier, clock
        self._knows_invited, self._invited = knows_invited, invited
        self._standings: dict[tuple[bytes, str], tuple[int, float, str]] = {}
        self._lock = threading.Lock()
        self.sent = 0
        """Bytes of segments handed out since the start."""

    def use_bulk(self, offer: Offer) -> None:
        """Hand out sessions of the bulk door from now on."""
        self._offer = offer

    def admits(self, key: bytes) -> bool:
        """Whether a CURVE key may connect."""
        return bool(self._network.devices_of(key)) or self._knows_invited(key)

    def answer(self, key: bytes, request: p.Request, payload: Sequence[bytes]) -> Answered:
        """Answer a request. Raises VaultError: it is refused, with the reason."""
        devices = self._network.devices_of(key)
        if not devices:
            if self._knows_invited(key):
                return self._invited(key, request)
            raise PermissionRefusedError("this device belongs to no member of the vault (any more)")
        if isinstance(request, p.Hello):
            have = p.whole_have(request.have, payload)
            for device in devices:
                self._network.met(device, request.addresses, request.known, have)
            first, rest = p.have_parts(self._network.batches.have())
            greeting = p.Greeting(addresses=self._network.addresses(), known=self._network.known(), have=first)
            return greeting, rest
        if isinstance(request, p.Pull):
            envelopes, more = self._network.batches.beyond(p.whole_have(request.have, payload))
            return p.Batches(more=more), envelopes
        if isinstance(request, p.Push):
            missing = self._log.reconciler.accept(payload)
            for device in devices if missing else ():
                self._network.greet_soon(device)
            return p.Taken(missing=missing), ()
        if isinstance(request, p.Blocks):
            files = files_for(request.cids, self._block_file)
            return p.Done(number=len(files)), files
        if isinstance(request, p.Fetch):
            return self._fetch(self._asker(devices, request), request)
        if isinstance(request, p.Holds):
            here = (i for i in request.contents if "here" in {self._standing(d, ContentId(i)) for d in devices})
            return p.Held(contents=tuple(here)), ()
        if isinstance(request, p.Leaves | p.Segment):
            return self._part(self._asker(devices, request), request)
        if isinstance(request, p.Stream):
            self._check(self._asker(devices, request), ContentId(request.content_id))
            session, stream_key = self._offer(key, ContentId(request.content_id))
            return p.Streaming(session=session, key=stream_key), ()
        raise PermissionRefusedError("only the invited may ask this")

    # -- contents -----------------------------------------------------------------------------------------------

    def _asker(self, devices: Sequence[DeviceKeys], request: p.Fetch | p.Leaves | p.Segment | p.Stream) -> DeviceKeys:
        """Which of the devices that announced one and the same CURVE key asks: anybody may announce another's.

        The signature tells; without one, the key's owner has what any of them may have, who could pass it on to it.
        """
        if len(devices) == 1:
            return devices[0]
        if isinstance(request, p.Fetch) and request.public:
            signature = request.signature
            fits = (d for d in devices if is_signed(self._ask_of(d, request), signature, d, self._verifier))
        else:
            content_id = ContentId(request.content_id)
            fits = (d for d in devices if self._standing(d, content_id) == "here")
        return next(fits, devices[0])

    def _ask_of(self, device: DeviceKeys, request: p.Fetch) -> KeyAsk:
        return KeyAsk(
            vault_id=self._vault_id,
            content_id=request.content_id,
            asker=device.device,
            holder=self._device,
            nonce=request.nonce,
            public=request.public,
        )

    def _fetch(self, device: DeviceKeys, request: p.Fetch) -> Answered:
        content_id = ContentId(request.content_id)
        state = self._standing(device, content_id)
        if state != "here":
            return p.Fetched(state=state), ()
        try:
            sealed = b""
            if request.public:
                ask = self._ask_of(device, request)
                sealed = seal_key(self._store.need_key(content_id), ask, request.signature, device, self._verifier)
            first = [self._store.read_ciphertext(content_id, 0, SEGMENT_BYTES)] if request.first else []
        except ForgottenError:
            return p.Fetched(state="gone"), ()
        except (NotYetAvailableError, LockedError):  # a locked node hands out no keys; others may
            return p.Fetched(state="unknown"), ()
        return p.Fetched(state="here", sealed_key=sealed), first

    def segment(self, key: bytes, content_id: ContentId, number: int) -> bytes:
        """One segment for the bulk door. Raises VaultError: not for the device with this key, or not here."""
        devices = self._network.devices_of(key)
        if not devices:
            raise PermissionRefusedError("this device belongs to no member of the vault (any more)")
        part = p.Segment(content_id=bytes(content_id), number=number)
        self._check(self._asker(devices, part), content_id)
        return self._read(content_id, number)

    def _check(self, device: DeviceKeys, content_id: ContentId) -> None:
        state = self._standing(device, content_id)
        if state == "gone":
            raise ForgottenError("this content was forgotten")
        if state != "here":
            raise NotYetAvailableError("this content is not here")

    def _read(self, content_id: ContentId, number: int) -> bytes:
        if number > segment_count(1 << 50):
            raise MisuseError("no content has so many segments")
        segment = self._store.read_ciphertext(content_id, number * SEGMENT_BYTES, SEGMENT_BYTES)
        fault("serve.before_segment")
        with self._lock:
            self.sent += len(segment)
        return segment

    def _part(self, device: DeviceKeys, request: p.Leaves | p.Segment) -> Answered:
        content_id = ContentId(request.content_id)
        self._check(device, content_id)
        if isinstance(request, p.Leaves):
            leaves = self._store.leaf_hashes(content_id)
            return p.Done(number=len(leaves)), [b"".join(leaves[request.start :][: p.LEAVES_AT_ONCE])]
        return p.Done(), [self._read(content_id, request.number)]

    def _standing(self, device: DeviceKeys, content_id: ContentId) -> str:
        """ "here", "unknown" or "gone", for this device. The store itself cuts off what is being forgotten."""
        key, horizon, now = (bytes(content_id), device.device), self._log.index.horizon, self._clock.monotonic()
        with self._lock:
            kept = self._standings.get(key)
        if kept is not None and kept[0] == horizon and now - kept[1] < STANDING_S:
            return kept[2]
        state = self._look(device, content_id)
        with self._lock:
            if len(self._standings) >= STANDINGS:
                self._standings.clear()
            self._standings[key] = (horizon, now, state)
        return state

    def _look(self, device: DeviceKeys, content_id: ContentId) -> str:
        if self._store.erased(content_id):
            return "gone"
        reading = read_state(self._log.recorder, [content_id])
        if content_id not in reading.state.publications:
            return "unknown"
        verdict = reading.state.verdict(content_id)
        expired = verdict.expires_ms is not None and verdict.expires_ms <= self._clock.wall_ms()
        if verdict.forgetting == "carried" or expired:
            return "gone"
        asked = [b.proposal.electorate for b in reading.state.ballots.all() if b.state in ("open", "carried")]
        if verdict.retracted or any(device.member not in electorate for electorate in asked):
            return "unknown"
        return "here" if self._store.is_available(content_id) else "unknown"


def _no_offer(_key: bytes, _content_id: ContentId) -> tuple[bytes, bytes]:
    raise TransportError("this node has no bulk door")
