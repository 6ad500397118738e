"""A node as a service: ready, observed and stopped as an operator would, without a word about what it holds."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families
from zmq.utils.monitor import recv_monitor_message

from support.command_line import ENVIRONMENT, STOP_SECONDS, as_json, publish, run, serving
from walytis_vault.bus.endpoint import read_record
from walytis_vault.bus.security import LOCAL, load_key

NAME = "a name that no log may hold"


def metric_values(url: str) -> dict[str, float]:
    """Sample -> value, labels in the name."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {" ".join([s.name, *s.labels.values()]): s.value for family in families for s in family.samples}


def misbehave(home: Path) -> None:
    """Send malformed messages that quote a name, until the node cuts the connection."""
    record, key = read_record(home / "bus"), load_key(home / "bus" / f"{LOCAL}.key")
    context = zmq.Context()
    s = context.socket(zmq.DEALER)
    s.linger, s.rcvtimeo = 0, 5000
    s.curve_serverkey = record.server_key.encode()
    s.curve_publickey, s.curve_secretkey = key.public_key.encode(), key.secret_key.encode()
    monitor = s.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    monitor.rcvtimeo = 5000
    s.connect(record.endpoint)
    for _ in range(15):
        s.send_multipart([NAME.encode(), NAME.encode()])
        s.recv_multipart()
    # With the last one the connection ends; whether its answer still gets through is left open.
    s.send_multipart([NAME.encode(), NAME.encode()])
    recv_monitor_message(monitor)
    context.destroy(linger=0)


def test_a_node_as_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says when it is ready and when it stops, shows its state in numbers, logs no name, and ends within 5 s."""
    home = tmp_path / "home"
    run(home, "init")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setitem(ENVIRONMENT, "NOTIFY_SOCKET", str(tmp_path / "notify"))
        options = ("--metrics", "127.0.0.1:0", "--log-format", "json", "--log-level", "info")
        with serving(home, *options) as node:
            assert manager.recv(100) == b"READY=1"
            url = next(w.split()[1] for w in node.said.splitlines() if w.startswith("metrics "))
            assert url.startswith("http://127.0.0.1:")
            publish(home, b"the content", "--name", NAME)
            run(home, "ls")
            before = metric_values(url)
            assert before["walytis_vault_healthy"] == 1
            assert before["walytis_vault_position log"] == before["walytis_vault_position catalogue"] == 3
            assert before["walytis_vault_store_contents"] == 1
            assert before["walytis_vault_disk_bytes log"] > 0
            misbehave(home)
            after = metric_values(url)
            assert after["walytis_vault_bus_malformed_total"] == 16
            assert after["walytis_vault_bus_cut_total"] == 1
            assert after["walytis_vault_bus_requests_total"] >= 2
            details = as_json(home, "status")["details"]
            assert details["problems"] == []
            assert set(details["bus"]["rates"]) == set(details["bus"]["totals"])
            assert details["disk"]["free"] > 0
            assert details["bus"]["queued"]["publish"] == 0
            code, seconds, out, rest = node.stop()
            assert manager.recv(100) == b"STOPPING=1"
    assert (code, out) == (0, b"")
    assert seconds < STOP_SECONDS
    lines = (node.said + rest.decode()).splitlines()
    records = [json.loads(line) for line in lines if not line.startswith(("ready ", "metrics "))]
    assert {r["level"] for r in records} >= {"info", "warning"}
    assert "the content" not in "".join(lines)
    assert NAME not in "".join(lines)
    assert any("cut" in r["message"] for r in records)
