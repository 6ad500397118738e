"""What identity tests do inside a child process, where the identity library lives. Called through `do_run`."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

from walytis_vault.adapters.identity import IdentityKeeper, check_certificate, guards, new_store_key
from walytis_vault.adapters.identity import keeper as keeper_module
from walytis_vault.domain import faults
from walytis_vault.domain.errors import VaultError

_keepers: dict[str, IdentityKeeper] = {}


def store_key(runtime: Any) -> bytes:
    """A new key for key stores."""
    return new_store_key()


def create(runtime: Any, folder: str, key: bytes) -> dict[str, Any]:
    """Create an identity; how long it took, and its DIDs."""
    before = time.perf_counter()
    made = IdentityKeeper.create(Path(folder), key)
    return {"seconds": time.perf_counter() - before, **_keep(folder, made)}


def open_(runtime: Any, folder: str, key: bytes) -> dict[str, Any]:
    """Open an identity."""
    return _keep(folder, IdentityKeeper.open(Path(folder), key))


def join(runtime: Any, folder: str, key: bytes, code: str) -> dict[str, Any]:
    """Join a group."""
    return _keep(folder, IdentityKeeper.join(Path(folder), key, code, timeout=60))


def _keep(folder: str, made: IdentityKeeper) -> dict[str, Any]:
    _keepers[folder] = made
    return {"device": made.device_did, "group": made.group_did, "member": made.member_did}


def invite(runtime: Any, folder: str, expires_s: float) -> str:
    """Invite to the group."""
    return _keepers[folder].invite(expires_s=expires_s, addresses=runtime.addresses)


def members(runtime: Any, folder: str) -> list[str]:
    """DIDs on the group's chain."""
    return sorted(_keepers[folder].group_members())


def given_keys(runtime: Any, folder: str) -> dict[str, list[str]]:
    """The keys that an invitation hands over, and those that the group's chain has on record."""
    made = _keepers[folder]
    recorded = keeper_module.control_keys_on_record(made.group_did) or []
    return {
        "given": made.keys_given_to_invited(),
        "recorded": [part for keys in recorded for part in keys.key_id.split("|") if part],
    }


def certify(runtime: Any, folder: str, statement: bytes) -> bytes:
    """Certify a statement."""
    return _keepers[folder].certify(statement)


def check(runtime: Any, did: str, statement: bytes, certificate: bytes) -> bool | None:
    """Check a certificate."""
    return check_certificate(did, statement, certificate)


def close(runtime: Any, folder: str) -> None:
    """Close an identity."""
    _keepers.pop(folder).close()


def forge_with_own_key(runtime: Any, did: str, statement: bytes) -> dict[str, Any]:
    """A certificate by keys that are not the DID's, and what upstream's own check says to such a signature."""
    guards.install()
    objects = importlib.import_module("walytis_identities.key_objects")
    certificates = importlib.import_module("walytis_vault.adapters.identity.certificates")
    stranger = objects.KeyGroup.create(list(certificates.FAMILIES))
    message = certificates.LABEL + statement
    package = objects.CodePackage.sign(message, stranger).serialise_bytes()
    return {
        "certificate": certificates.encode(stranger.get_id(), [k.sign(message, None) for k in stranger.keys]),
        "upstream_believes": objects.CodePackage.deserialise_bytes(package).verify_signature(message),
    }


def answer_challenge(runtime: Any, folder: str, challenge: str) -> bool:
    """Have the identity library answer a handshake's challenge, as it does for anybody who connects."""
    made = _keepers[folder]
    group = made._host._run()
    module = importlib.import_module("walytis_identities.datatransmission")
    try:
        return "group_key_proof" in module.handle_challenge(group, challenge)
    except VaultError:
        return False


def answer_invited(runtime: Any, folder: str, challenge: str) -> str:
    """Call an invitation's handler as a stranger with a chosen challenge would; the refusal, if any."""
    made = _keepers[folder]
    manager = made._host._run().member_invitations[0]
    salutation = json.dumps({"one_time_key": made.keys_given_to_invited()[0], "challenge_data": challenge})
    try:
        manager.handler(conv_name="x", peer_id="y", salutation_start=salutation.encode())
    except VaultError as e:
        return str(e)
    except Exception as e:
        return f"upstream went on: {type(e).__name__}"
    return "upstream went on"


def open_invitations(runtime: Any, folder: str) -> int:
    """How many invitations the group answers that nobody has used."""
    made = _keepers[folder]
    return sum(not getattr(i, "_used", False) for i in made._host._run().member_invitations)


def receive_file(runtime: Any, folder: str, name: str) -> dict[str, Any]:
    """Feed a file with this name to the library's receiver; which files exist afterwards, and its state."""
    guards.install()
    module = importlib.import_module("ipfs_tk_transmission.file_transmission")
    utils = importlib.import_module("ipfs_tk_transmission.utils")

    class Conversation:
        """As much of a conversation as a receiver touches."""

        peer_id = "peer"

        def say(self, data: bytes) -> None:
            assert data

        def close(self) -> None:
            pass

        terminate = close

    downloads = Path(folder) / "downloads" / "deep"
    downloads.mkdir(parents=True, exist_ok=True)
    receiver = module.FileTransmissionReceiver()
    receiver.setup(None, Conversation(), None, download_dir=str(downloads))
    header = bytes(utils._to_b255_no_0s(4)) + b"\xff" + name.encode() + b"\xff"
    receiver.on_data_received(None, bytearray(header))
    receiver.on_data_received(None, bytearray(b"evil"))
    found = [str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()]
    return {"files": found, "status": receiver.status}


def store_foreign_key(runtime: Any, folder: str) -> str:
    """Try to put keys that are not the identity's into its key store; how it was refused."""
    store = _keepers[folder]._open_device_store()
    for foreign in (b"k" * 32, "text", {"key": 1}):
        try:
            store.add_key(foreign)
        except VaultError as e:
            answer = str(e)
        else:
            return "accepted"
    return answer


def die_while_saving(runtime: Any, folder: str, point: str) -> None:
    """Kill this process inside the next write of the key store."""
    store = _keepers[folder]._open_device_store()

    def hook(name: str) -> None:
        if name == point:
            os._exit(9)

    faults.install(hook)
    store.update_custom_metadata({"note": "x" * 5000})


def handled_blocks(runtime: Any, folder: str, key: bytes) -> int:
    """Open the device's DID manager in full, which reads its list of handled blocks; how many it has."""
    _keepers[folder].close()
    made = IdentityKeeper.open(Path(folder), key)
    _keepers[folder] = made
    group = made._host._run()
    return len(list(group.member_did_manager.blockchain.get_block_ids()))
