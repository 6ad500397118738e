"""Making a vault: identity, keys, log chain and founding batch, in one go or not at all.

Runs in a process of its own, since the embedded Walytis node cannot be stopped quickly (see `process`).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from zmq.utils import z85

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.identity.keeper import IdentityKeeper
from walytis_vault.adapters.identity.store_key import new_store_key
from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.storage.secrets_file import SecretsFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock
from walytis_vault.adapters.walytis.runtime import WalytisRuntime
from walytis_vault.adapters.walytis.vault_log import VaultLog, found_vault
from walytis_vault.bus.security import LOCAL, add_client, make_keys
from walytis_vault.domain.claims import device_name, prove_possession
from walytis_vault.domain.errors import MisuseError, StorageError, VaultError
from walytis_vault.domain.events import ANY_MEMBER, FOUNDER, DeviceKeys, KeyAnnounced, VaultFounded
from walytis_vault.domain.faults import fault
from walytis_vault.home import HOME_FORMAT, MAX_NAME, NETWORKS, Home, Network, VaultConfig
from walytis_vault.view_places import probe

SIGNING_SECRET = "signing"  # noqa: S105 - names of entries, not secrets
BUS_SECRET = "bus"  # noqa: S105
IDENTITY_SECRET = "identity"  # noqa: S105


class VaultInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `init` made."""

    vault_id: str
    did: str
    home: str


def found(
    path: Path,
    *,
    name: str,
    passphrase: str | None,
    network: str,
    removal: str = "any",
    views: str | None = None,
) -> VaultInfo:
    """Make a vault of one member in an empty folder.

    Args:
        removal: who may remove members, for ever: "any" member or the "founder".
        views: where its views will be, None for a file in the home.
    Raises:
        MisuseError: a vault is there already, the folder holds something else, or an argument is wrong.
        StorageError, TransportError: it could not be made; what was begun is removed.
    """
    network, policy = check_network(network), check_removal(removal)
    if not name or len(name) > MAX_NAME:
        raise MisuseError(f"the local name of a vault has 1 to {MAX_NAME} characters")
    place = probe(views)
    home = Home(path, OsFileSystem())
    home.begin_making()
    try:
        config = msgspec.structs.replace(_make(home, name, passphrase, network, policy), views=place)
        fault("init.before_config")
        home.end_making(config)
    except VaultError:
        home.abandon_making()
        raise
    except OSError as e:
        home.abandon_making()
        raise StorageError(f"cannot make a vault in {home.path}: {e.strerror or e}") from e
    return VaultInfo(vault_id=config.vault_id, did=config.member, home=str(home.path))


def check_network(network: str) -> Network:
    """Raises MisuseError unless it is one of the three modes."""
    for known in NETWORKS:
        if network == known:
            return known
    raise MisuseError(f"network is one of {', '.join(NETWORKS)}, not {network!r}")


def check_removal(removal: str) -> str:
    """The policy as it is recorded. Raises MisuseError."""
    policy = {"any": ANY_MEMBER, "founder": FOUNDER}.get(removal)
    if policy is None:
        raise MisuseError(f"who may remove members is `any` (member) or `founder`, not {removal!r}")
    return policy


def _make(home: Home, name: str, passphrase: str | None, network: Network, policy: str) -> VaultConfig:
    fs, clock = OsFileSystem(), SystemClock()
    keys = VaultKeys.create(home.keys, fs, passphrase)
    signer, bus_keys, identity_key = HybridSigner.generate(), make_keys(), new_store_key()
    SecretsFile(home.keys, keys, fs).seal_secrets(
        {SIGNING_SECRET: signer.private_bytes(), BUS_SECRET: bus_keys.secret.encode(), IDENTITY_SECRET: identity_key}
    )
    runtime = WalytisRuntime.start(home.path, mode=network)
    identity = IdentityKeeper.create(home.identity, identity_key)
    chain = runtime.create_chain(f"vault-{runtime.peer_id[-8:]}")
    me = device_name(identity.device_did, signer.key_id)
    device_keys = DeviceKeys(
        member=me,
        device=me,
        ed25519=signer.ed25519_public,
        ml_dsa_65=signer.ml_dsa_65_public,
        bus=z85.decode(bus_keys.public.encode()),
        peer_id=runtime.peer_id,
    )
    device_keys = prove_possession(device_keys, chain.chain_id, signer)
    announced = KeyAnnounced(keys=device_keys, certificate=identity.certify(msgspec.msgpack.encode(device_keys)))
    fault("init.before_founding")
    founded = VaultFounded(founder=me, group=identity.group_did, removal_policy=policy)
    root = found_vault(chain, signer, founded, announced, clock)
    log = VaultLog(Database(home.log_database), chain, signer, HybridVerifier(), device=me, root=root, clock=clock)
    try:
        log.reconciler.catch_up()
        if log.index.horizon < len((founded, announced)):
            raise StorageError("the founding batch does not verify: this is a defect, please report it")
    finally:
        log.close()
    add_client(home.bus, LOCAL)
    identity.close()
    runtime.stop()
    return VaultConfig(
        format=HOME_FORMAT,
        vault_id=chain.chain_id,
        root=root,
        name=name,
        member=me,
        device=me,
        group=identity.group_did,
        network=network,
        created_ms=clock.wall_ms(),
    )
