"""What a hostile device does on a real node of its own, run in a `WalytisChild` by `call("run", …)`.

It has a member's home with all its keys, and speaks to the other members' doors and to the chain as it likes: two
batches under one number, batches for one node only, foreign signatures, requests after its removal.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem
from zmq.utils import z85

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.exchange.key_transfer import NONCE_BYTES, OpenRequest
from walytis_vault.adapters.exchange.tunnels import PeerTunnels
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.security import BusKeys, bus_keys, make_keys
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import BATCH_VERSION, BatchBody, EventRecord, key_id_of_device, seal_batch
from walytis_vault.domain.errors import UntrustedInputError, VaultError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.ids import BatchId, ContentId
from walytis_vault.domain.limits import LIMITS
from walytis_vault.founding import BUS_SECRET, SIGNING_SECRET
from walytis_vault.home import Home, VaultConfig
from walytis_vault.peers import protocol as p
from walytis_vault.peers.link import PeerLink

MODULE = __name__


class Hostile:
    """The device's parts, opened one by one as a node would."""

    def __init__(self, runtime: Any, home: Path) -> None:
        """Open the home; nothing runs by itself."""
        fs = OsFileSystem()
        folder = Home(home, fs)
        self.config: VaultConfig = folder.config()
        keys = VaultKeys.open(folder.keys, fs, None)
        secrets = SecretsFile(folder.keys, keys, fs).open_secrets()
        self.signer = HybridSigner.from_private_bytes(secrets[SIGNING_SECRET])
        self.bus = bus_keys(secrets[BUS_SECRET])
        self.runtime = runtime
        self.tunnels = PeerTunnels(runtime.tunnels(), self.config.vault_id)
        self.chain = runtime.open_chain(self.config.vault_id)
        self.log = VaultLog(
            Database(folder.log_database), self.chain, self.signer, HybridVerifier(),
            device=self.config.device, root=BatchId(self.config.root), clock=SystemClock(),
        )  # fmt: skip
        self.log.start()

    def keys_of(self, device: str) -> DeviceKeys:
        """What a device announced."""
        return next(k for k in self.log.membership().keys.values() if k.device == device)

    def link(self, device: str, keys: BusKeys) -> PeerLink:
        """A link to a device's door."""
        other = self.keys_of(device)
        return PeerLink(self.tunnels.dial(other.peer_id), server_key=other.bus, keys=keys)


_opened: dict[Path, Hostile] = {}


def _hostile(runtime: Any, home: str) -> Hostile:
    if Path(home) not in _opened:
        _opened[Path(home)] = Hostile(runtime, Path(home))
    return _opened[Path(home)]


def connect(runtime: Any, address: str) -> None:
    """Connect to another node."""
    runtime.connect(address)


def position(runtime: Any, home: str) -> tuple[int, bytes, list[bytes]]:
    """(number, id) of this device's last batch, and the other heads, after a look at the chain."""
    me = _hostile(runtime, home)
    me.log.reconciler.catch_up()
    with me.log.index.database.read() as connection:
        last = me.log.index.last_batch_of(connection, me.config.device)
        heads = me.log.index.heads(connection, LIMITS.batch_heads)
    assert last is not None
    return last.number, last.batch_id, [h for h in heads if h != last.batch_id]


def batch(
    runtime: Any,
    home: str,
    events: list[tuple[str, bytes]],
    number: int,
    previous: bytes,
    heads: list[bytes],
    time_ms: int = 0,
    author: str | None = None,
    vault_id: str | None = None,
) -> tuple[bytes, bytes]:
    """Sign a batch that says whatever the test wants; return its id and envelope."""
    me = _hostile(runtime, home)
    body = BatchBody(
        version=BATCH_VERSION, vault_id=vault_id or me.config.vault_id, author=author or me.config.device,
        key_id=me.signer.key_id, number=number, previous=previous, heads=tuple(sorted(heads)), time_ms=time_ms,
        events=tuple(EventRecord(topic, payload) for topic, payload in events),
    )  # fmt: skip
    sealed = seal_batch(body, me.signer)
    return sealed.batch_id, sealed.envelope()


def to_chain(runtime: Any, home: str, envelope: bytes) -> None:
    """Put any bytes into a block."""
    _hostile(runtime, home).chain.append(envelope)


def ask(
    runtime: Any,
    home: str,
    device: str,
    request: bytes,
    payload: list[bytes],
    stranger: bool,
) -> tuple[str, bytes, list[bytes]]:
    """Ask a device's door with this device's key, or with one that nobody announced.

    Returns:
        What came: "answer" with the reply as MessagePack, or an error's code.
    """
    me = _hostile(runtime, home)
    link = me.link(device, make_keys() if stranger else me.bus)
    try:
        reply, parts = link.ask(msgspec.msgpack.decode(request, type=p.Request), payload, timeout=4.0)
        return "answer", msgspec.msgpack.encode(reply), parts
    except VaultError as e:
        return e.code, str(e).encode(), []
    finally:
        link.close()


def announced(runtime: Any, home: str) -> dict[str, Any]:
    """This device's own keys as it announced them, and its id."""
    me = _hostile(runtime, home)
    keys = me.keys_of(me.config.device)
    return {
        "device": me.config.device,
        "member": me.config.member,
        "vault_id": me.config.vault_id,
        "key_id": bytes(key_id_of_device(keys)),
        "bus": z85.decode(me.bus.public.encode()),
    }


def published(runtime: Any, home: str, content_id: bytes) -> bytes:
    """The payload of the event that published a content."""
    me = _hostile(runtime, home)
    me.log.reconciler.catch_up()
    query = DCBQuery(items=[DCBQueryItem(types=[ev.ContentPublished.TOPIC], tags=[ev.content_tag(content_id)])])
    return next((bytes(found.event.data) for found in me.log.recorder.read(query)), b"")


def pull(runtime: Any, home: str, device: str) -> None:
    """Take everything that a device's node has, as an honest node would."""
    me = _hostile(runtime, home)
    link = me.link(device, me.bus)
    try:
        more = True
        while more:
            have = me.log.index.last_numbers({k.device for k in me.log.membership().keys.values()})
            reply, envelopes = link.ask(p.Pull(have=have), timeout=10.0)
            me.log.reconciler.accept(envelopes)
            more = isinstance(reply, p.Batches) and reply.more
    finally:
        link.close()


_asked: dict[bytes, OpenRequest] = {}


def key_request(runtime: Any, home: str, content_id: bytes, holder: str, asker: str | None = None) -> bytes:
    """A request for a content's key, signed with this device's key; as another device's if `asker` is given."""
    me = _hostile(runtime, home)
    made = OpenRequest(
        me.signer, vault_id=me.config.vault_id, content_id=ContentId(content_id),
        asker=asker or me.config.device, holder=holder, nonce=os.urandom(NONCE_BYTES),
    )  # fmt: skip
    _asked[made.wire.nonce] = made
    wire = made.wire
    fetch = p.Fetch(content_id=content_id, nonce=wire.nonce, public=wire.public, signature=wire.signature, first=True)
    return msgspec.msgpack.encode(fetch)


def opens(runtime: Any, home: str, nonce: bytes, sealed: bytes) -> bytes | None:
    """The key in a reply to a request; None when it does not open."""
    try:
        return bytes(_asked[nonce].open(sealed))
    except UntrustedInputError:
        return None
