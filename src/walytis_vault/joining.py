"""Joining a vault with a code: identity, keys, chain, admission, in a home of its own. Repeatable after a kill.

Runs in a process of its own (see `process`). What a code says about the vault is believed only as far as the
founding batch's id goes: everything else is verified from there. The inviter's side is peers/admission.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
from zmq.utils import z85

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.exchange.tunnels import PeerTunnels
from walytis_vault.adapters.identity import IdentityKeeper
from walytis_vault.adapters.identity.store_key import new_store_key
from walytis_vault.adapters.storage.atomic_file import replace_file
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock
from walytis_vault.adapters.walytis.chain_pack import MAX_PACK, unpack_chain
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.security import LOCAL, BusKeys, add_client, bus_keys, make_keys
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.claims import device_name, prove_possession
from walytis_vault.domain.errors import (
    BusyError,
    MisuseError,
    StorageError,
    TimedOutError,
    TransportError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import BatchId
from walytis_vault.founding import (
    BUS_SECRET,
    IDENTITY_SECRET,
    SIGNING_SECRET,
    VaultInfo,
    check_network,
)
from walytis_vault.home import HOME_FORMAT, MAX_NAME, Home, Network, VaultConfig
from walytis_vault.peers import protocol as p
from walytis_vault.peers.addresses import AddressBook, own_addresses
from walytis_vault.peers.batches import Batches
from walytis_vault.peers.invitations import Code, door_keys, read_code
from walytis_vault.peers.link import PeerLink, Replied

ASK_S: Final = 30.0
"""How long the inviter's node may take for one answer."""
LONG_ASK_S: Final = 300.0
"""The same where it has much to do."""
ADMITTED_S: Final = 30.0
"""How long our admission may take until our own log shows it."""
LOOK_AGAIN_S: Final = 0.25
"""Pause between two looks for it, and before a node that was busy is asked again."""

ASKED: Final = "asked"
"""File in a home: admission was asked for."""

Progress = Callable[[str], None]
_log = logging.getLogger(__name__)


def join(
    path: Path, code_text: str, *, name: str, passphrase: str | None, network: str, progress: Progress
) -> VaultInfo:
    """Join the vault that a code invites to, in an empty folder, or go on where an earlier attempt ended.

    Raises:
        MisuseError: no code, or a wrong argument. PermissionRefusedError, ConflictError,
        ForgottenError: the inviter's node refuses the code, and says why. TransportError, TimedOutError: the
        inviter's node cannot be reached; repeat the same command. StorageError.
    """
    mode = check_network(network)
    if not name or len(name) > MAX_NAME:
        raise MisuseError(f"the local name of a vault has 1 to {MAX_NAME} characters")
    code = read_code(code_text)
    home = Home(path, OsFileSystem())
    home.begin_making(hashlib.sha256(code.secret).hexdigest())
    joining = _Joining(home, code, passphrase, mode, progress)
    try:
        if code.expires_ms <= SystemClock().wall_ms():
            # By our own clock, which may be wrong: only the inviter's node decides.
            progress("the code has expired, by this machine's clock: asking the inviter's node all the same")
        config = joining.run(name)
        fault("join.before_config")
        home.end_making(config)
        (home.path / ASKED).unlink(missing_ok=True)
    except VaultError:
        if not joining.asked:
            home.abandon_making()  # afterwards we may be a member with the keys that lie here
        raise
    except OSError as e:
        raise StorageError(f"cannot join in {home.path}: {e.strerror or e}") from e
    return VaultInfo(vault_id=config.vault_id, did=config.member, home=str(home.path))


class _Joining:
    """One attempt. Every step looks first whether an earlier attempt has done it."""

    def __init__(self, home: Home, code: Code, passphrase: str | None, network: Network, progress: Progress) -> None:
        self._home, self._code, self._passphrase, self._network = home, code, passphrase, network
        self._progress = progress
        self._fs, self._clock = OsFileSystem(), SystemClock()
        self.asked = (home.path / ASKED).exists()
        """Whether admission was asked for."""

    def run(self, name: str) -> VaultConfig:
        secrets = self._secrets()
        self._home.use_private_temp()
        signer = HybridSigner.from_private_bytes(secrets[SIGNING_SECRET])
        bus = bus_keys(secrets[BUS_SECRET])
        self._progress("starting the node")
        peers = tuple(f"{address}/p2p/{self._code.peer_id}" for address in self._code.addresses)
        runtime = WalytisRuntime.start(self._home.path, mode=self._network, peers=peers)
        self._progress("connecting to the inviter's node")
        self._connect(runtime, peers)
        port = PeerTunnels(runtime.tunnels(), self._code.vault_id).dial(self._code.peer_id)
        public, private = door_keys(self._code.secret)
        invited = PeerLink(
            port, server_key=self._code.door, keys=BusKeys(public=public.decode(), secret=private.decode())
        )
        member: PeerLink | None = None
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="join-identity") as aside:
                # The identity library mostly waits: meanwhile the log comes and is judged.
                joining = aside.submit(self._identity, invited, secrets[IDENTITY_SECRET])
                self._chain(invited)
                fault("join.after_chain")
                self._judge(runtime, signer)
                identity = joining.result()
            fault("join.after_identity")
            me = device_name(identity.device_did, signer.key_id)
            keys = ev.DeviceKeys(
                member=self._code.member or me,
                device=me,
                ed25519=signer.ed25519_public,
                ml_dsa_65=signer.ml_dsa_65_public,
                bus=z85.decode(bus.public.encode()),
                peer_id=runtime.peer_id,
            )
            keys = prove_possession(keys, self._code.vault_id, signer)
            log = self._log(runtime, signer, me)
            try:
                self._ask_in(log, runtime, keys, invited)
                member = PeerLink(port, server_key=self._code.door, keys=bus)
                self._enter(log, identity, keys, member)
            finally:
                log.close()
        finally:
            invited.close()
            if member is not None:
                member.close()
        book = AddressBook(self._home.prepare_peers() / "addresses.json", self._fs)
        book.learn(self._code.peer_id, self._code.addresses)
        if not (self._home.bus / f"{LOCAL}.key").exists():
            add_client(self._home.bus, LOCAL)
        runtime.stop()  # the identity is left as it is: closing it would take long, and the process ends now
        return VaultConfig(
            format=HOME_FORMAT,
            vault_id=self._code.vault_id,
            root=self._code.root,
            name=name,
            member=keys.member,
            device=me,
            group=identity.group_did,
            network=self._network,
            created_ms=self._clock.wall_ms(),
        )

    def _secrets(self) -> dict[str, bytes]:
        """This device's keys: those of the attempt before, if it got as far as sealing them."""
        if self.asked:
            keys = VaultKeys.open(self._home.keys, self._fs, self._passphrase)
            return SecretsFile(self._home.keys, keys, self._fs).open_secrets()
        self._home.sweep()
        keys = VaultKeys.create(self._home.keys, self._fs, self._passphrase)
        secrets = {
            SIGNING_SECRET: HybridSigner.generate().private_bytes(),
            BUS_SECRET: make_keys().secret.encode(),
            IDENTITY_SECRET: new_store_key(),
        }
        SecretsFile(self._home.keys, keys, self._fs).seal_secrets(secrets)
        return secrets

    def _connect(self, runtime: WalytisRuntime, peers: tuple[str, ...]) -> None:
        for address in peers:
            with contextlib.suppress(TransportError):
                runtime.connect(address)
                return
        raise TransportError("the inviter's node cannot be reached: is it running? Then repeat the same command")

    def _patiently(self, invited: PeerLink, request: p.Request) -> Replied:
        """Ask for what takes the inviter's node long, and what it does for one newcomer at a time."""
        pause, until = threading.Event(), time.monotonic() + LONG_ASK_S
        while True:
            try:
                return invited.ask(request, timeout=LONG_ASK_S)
            except BusyError:
                if time.monotonic() > until:
                    raise
                pause.wait(LOOK_AGAIN_S)

    def _identity(self, invited: PeerLink, key: bytes) -> IdentityKeeper:
        if self.asked:
            return IdentityKeeper.open(self._home.identity, key)
        self._progress("joining the identity")
        _, payload = self._patiently(invited, p.JoinGroup())
        invitation = payload[0].decode(errors="replace") if payload else ""
        identity = IdentityKeeper.join(self._home.identity, key, invitation)
        if identity.group_did != self._code.group:
            raise UntrustedInputError("the inviter's node let us into another identity than the code names")
        return identity

    def _chain(self, invited: PeerLink) -> None:
        if self.asked:
            return
        reply, _ = self._patiently(invited, p.ChainSize())
        size = reply.number if isinstance(reply, p.Done) else 0
        if not 0 < size <= MAX_PACK:
            raise UntrustedInputError("the inviter's node offers a chain of a size that cannot be")
        self._progress(f"fetching the log: {size // 1024} KiB")
        pack = self._home.path / "pack.zip"
        try:
            with pack.open("wb") as file:
                while file.tell() < size:
                    _, payload = invited.ask(p.ChainPart(offset=file.tell()), timeout=ASK_S)
                    if len(payload) != 1 or not payload[0]:
                        raise TransportError("the inviter's node stopped sending the chain: repeat the same command")
                    file.write(payload[0])
            unpack_chain(self._code.vault_id, pack)
        finally:
            pack.unlink(missing_ok=True)

    def _log(self, runtime: WalytisRuntime, signer: HybridSigner, device: str) -> VaultLog:
        return VaultLog(
            Database(self._home.log_database),
            runtime.open_chain(self._code.vault_id),
            signer,
            HybridVerifier(),
            device=device,
            root=BatchId(self._code.root),
            clock=self._clock,
            progress=lambda judged: self._progress(f"verifying the log: {judged} blocks"),
        )

    def _judge(self, runtime: WalytisRuntime, signer: HybridSigner) -> None:
        """Verify the log that was sent, before this device has a name in it; nothing can be written meanwhile."""
        self._progress("verifying the log")
        log = self._log(runtime, signer, "did:none")
        try:
            log.reconciler.catch_up()
            if not log.membership().members:
                raise UntrustedInputError("the chain that was sent does not begin with the vault's founding batch")
        finally:
            log.close()

    def _ask_in(self, log: VaultLog, runtime: WalytisRuntime, keys: ev.DeviceKeys, invited: PeerLink) -> None:
        """Ask for admission, unless the log shows it already."""
        log.reconciler.catch_up()
        if key_id_of_device(keys) not in log.membership().keys:
            self._progress("asking for admission")
            # From now on we may be a member, with the keys that lie here: all of it outlives a power cut.
            os.sync()
            replace_file(self._fs, self._home.path / ASKED, b"\n")
            self.asked = True
            addresses = own_addresses(runtime.addresses, self._network)
            invited.ask(p.Admit(keys=msgspec.msgpack.encode(keys), addresses=addresses), timeout=ASK_S)
            fault("join.after_admission")

    def _enter(self, log: VaultLog, identity: IdentityKeeper, keys: ev.DeviceKeys, member: PeerLink) -> None:
        """Wait until our own log shows the admission, then announce our keys."""
        key_id = key_id_of_device(keys)
        until = time.monotonic() + ADMITTED_S
        batches, pause = Batches(log), threading.Event()
        while True:
            batches.pull(member, ASK_S, lambda: False)
            if key_id in log.membership().keys:
                break
            if time.monotonic() > until:
                raise TimedOutError("the admission does not show in the log yet: repeat the same command")
            pause.wait(LOOK_AGAIN_S)
        log.start()
        if not log.index.last_numbers([keys.device]):
            certificate = identity.certify(msgspec.msgpack.encode(keys))
            log.recorder.append([ev.to_dcb(ev.KeyAnnounced(keys=keys, certificate=certificate))])
            fault("join.after_announcement")
            envelopes = log.index.envelopes_beyond({}, [keys.device], 1)
            with contextlib.suppress(VaultError):  # it is on the chain: everybody hears of it anyway
                member.ask(p.Push(), envelopes, timeout=ASK_S)
