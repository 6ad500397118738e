"""A node as a service: ready, observed and stopped as an operator would, without a word about what it holds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from support.command_line import ENVIRONMENT, STOP_SECONDS, as_json, publish, run, serving, words_for
from walytis_vault import Client, VaultError
from walytis_vault.bus.endpoint import read_record
from walytis_vault.bus.security import LOCAL, load_key

NAME = "a name that no log may hold"


def metric_values(url: str) -> dict[str, float]:
    """Sample -> value, labels in the name."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {" ".join([s.name, *s.labels.values()]): s.value for family in families for s in family.samples}


def misbehave(home: Path, seconds: float = 20.0) -> None:
    """Send malformed messages that quote a name, until the node cuts the connection."""
    record, key = read_record(home / "bus"), load_key(home / "bus" / f"{LOCAL}.key")
    with zmq.Context() as context, context.socket(zmq.DEALER) as s:
        s.linger = 0
        s.curve_serverkey = record.server_key.encode()
        s.curve_publickey, s.curve_secretkey = key.public_key.encode(), key.secret_key.encode()
        poller, deadline = zmq.Poller(), time.monotonic() + seconds
        with s.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            poller.register(s, zmq.POLLIN)
            poller.register(monitor, zmq.POLLIN)
            s.connect(record.endpoint)
            for _ in range(16):
                s.send_multipart([NAME.encode(), NAME.encode()])
            # Which of the answers get through before the end is left open.
            while True:
                ready = dict(poller.poll(max(0, int((deadline - time.monotonic()) * 1000))))
                assert ready, "not cut in time"
                if monitor in ready:
                    break
                s.recv_multipart()
            s.disable_monitor()


def fill(descriptor: int) -> None:
    """Fill a pipe, so that whoever writes to it next waits."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(65536))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"\0")
    os.set_blocking(descriptor, True)


def test_a_log_that_nobody_reads(tmp_path: Path) -> None:
    """With stderr a full pipe, clients are served, transfers go on, and SIGTERM ends the node within 5 s."""
    home = tmp_path / "home"
    run(home, "init")
    said, stderr = os.pipe()
    command = words_for(home, "serve", "--until-eof")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr, env=ENVIRONMENT, start_new_session=True)
    try:
        while b"ready " not in os.read(said, 65536):
            assert process.poll() is None
        fill(stderr)
        with Client(home, timeout=20) as client:
            large = client.publish(bytes(32 << 20)).content_id
            for _ in range(25):
                misbehave(home)
            assert client.status().position == 3
            changes = client.subscribe("events")
            assert next(changes).position == 1
            release = threading.Event()
            transfers = [
                threading.Thread(target=_ends, args=(client.publish, Slow(release))),
                threading.Thread(target=_ends, args=(lambda to: client.request(large, to=to), Slow(release))),
            ]
            for transfer in transfers:
                transfer.start()
            while not (client.status().details["bus"]["uploads"] and client.status().details["bus"]["downloads"]):
                assert all(t.is_alive() for t in transfers)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = process.wait(STOP_SECONDS)
            assert (code, time.monotonic() - began < 5) == (0, True)
            release.set()
        for transfer in transfers:
            transfer.join(10)
    finally:
        process.kill()
        process.wait(STOP_SECONDS)
        assert process.stdin is not None
        process.stdin.close()
        os.close(said)
        os.close(stderr)


class Slow(io.RawIOBase):
    """A file that gives and takes a little, and then waits."""

    def __init__(self, release: threading.Event) -> None:
        self._release = release
        self._size = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._size += len(buffer)
        if self._size > 4 << 20:
            self._release.wait(60)
        return len(buffer) if self._size < 64 << 20 else 0

    def write(self, data: Any) -> int:
        self._size += len(data)
        if self._size > 4 << 20:
            self._release.wait(60)
        return len(data)


def _ends(work: Callable[[Any], object], file: Slow) -> None:
    """A transfer that the end of the node ends."""
    with contextlib.suppress(VaultError):
        work(file)


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
