"""What each network mode lets the embedded node do, by the configuration that it would start with.

The repository is made by the real library, in a child process that never starts the node: nothing but loopback is
opened here, so what `lan` and `public` do on a wire is not shown by any test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from support.command_line import ENVIRONMENT
from walytis_vault.peers.addresses import own_addresses

PROGRAM = """
import json, os, sys
from pathlib import Path
from walytis_vault.adapters.walytis import kubo_repo, quiet, upstream
folder = Path(sys.argv[1])
quiet.hush(folder)
with quiet.without_kubo_log(folder):
    upstream.load_kubo()
found = []
for mode in sys.argv[2:]:
    kubo_repo.prepare(folder, mode=mode, port=None, peers=("/ip4/127.0.0.1/tcp/4/p2p/12D3Peer",))
    found.append(json.loads((folder / "config").read_text()))
(folder / "found").write_text(json.dumps(found))
os._exit(0)
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The configuration in each mode, one after the other on the same repository; the last as the first."""
    folder = tmp_path_factory.mktemp("ipfs")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), "loopback", "lan", "public", "loopback"],
        env=ENVIRONMENT, check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads((folder / "found").read_text())
    return found


def test_loopback_listens_and_asks_nowhere_else(configs: list[dict[str, Any]]) -> None:
    """One address of 127.0.0.1; no multicast, bootstrap peers, port mapping, relays; also after a public time."""
    for config in (configs[0], configs[3]):
        (address,) = config["Addresses"]["Swarm"]
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert _private(config)
        assert config["Discovery"]["MDNS"]["Enabled"] is False


def test_lan_listens_everywhere_and_asks_by_multicast_alone(configs: list[dict[str, Any]]) -> None:
    """All interfaces and mDNS, but no bootstrap peers, port mapping or relays."""
    config = configs[1]
    (address,) = config["Addresses"]["Swarm"]
    assert address.startswith("/ip4/0.0.0.0/tcp/")
    assert _private(config)
    assert config["Discovery"]["MDNS"]["Enabled"] is True


def test_public_asks_bootstrap_peers_whatever_the_mode_was_before(configs: list[dict[str, Any]]) -> None:
    """TCP and QUIC on all interfaces, bootstrap peers, and what libp2p has against NAT."""
    config = configs[2]
    assert [a.split("/")[2:4] for a in config["Addresses"]["Swarm"]] == [["0.0.0.0", "tcp"], ["0.0.0.0", "udp"]]
    assert len(config["Bootstrap"]) >= 4
    assert all("/p2p/" in peer for peer in config["Bootstrap"])
    assert config["Discovery"]["MDNS"]["Enabled"] is False
    assert config["Swarm"]["DisableNatPortMap"] is False
    assert config["Swarm"]["RelayClient"]["Enabled"] is True
    assert config["AutoNAT"] == {}


def test_the_identity_and_port_stay_and_no_mode_opens_an_api(configs: list[dict[str, Any]]) -> None:
    """A mode changes whom the node talks to, not who it is; nothing but libp2p is ever listened for."""
    assert len({json.dumps(c["Identity"]) for c in configs}) == 1
    assert len({c["Addresses"]["Swarm"][0].rpartition("/")[2] for c in configs}) == 1
    for config in configs:
        assert config["Addresses"]["API"] == config["Addresses"]["Gateway"] == []
        assert [p["ID"] for p in config["Peering"]["Peers"]] == ["12D3Peer"]


def test_invitations_name_the_addresses_that_others_can_reach() -> None:
    """On loopback only those of 127.0.0.1; else those of other interfaces first, each once, and not too many."""
    loop, lan, six = "/ip4/127.0.0.1/tcp/4", "/ip4/192.168.1.7/tcp/4", "/ip6/::1/tcp/4"
    given = [f"{a}/p2p/12D3Me" for a in (loop, lan, six, lan)]
    assert own_addresses(given, "loopback") == (loop,)
    assert own_addresses(given, "lan") == (lan, loop, six)
    assert own_addresses([f"/ip4/10.0.0.{n}/tcp/4" for n in range(50)], "public") == tuple(
        f"/ip4/10.0.0.{n}/tcp/4" for n in range(8)
    )
    assert own_addresses([lan], "loopback") == ()


def _private(config: dict[str, Any]) -> bool:
    swarm = config["Swarm"]
    return (
        config["Bootstrap"] == []
        and swarm["DisableNatPortMap"] is True
        and swarm["RelayClient"]["Enabled"] is False
        and config["AutoNAT"]["ServiceMode"] == "disabled"
    )
