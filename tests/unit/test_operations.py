"""Logs without content, metrics on loopback only, a stop that nobody polls for, and the word to the service manager."""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from support.command_line import ENVIRONMENT
from walytis_vault import logs, service_manager
from walytis_vault.bus.meter import Meter
from walytis_vault.domain.errors import MisuseError, TransportError
from walytis_vault.metrics import MetricsServer, parse_address


@pytest.fixture
def _loggers() -> Iterator[None]:
    """Leaves the loggers of this process as they were."""
    loggers = (logging.getLogger("walytis_vault"), logging.root)
    kept = [(lg, list(lg.handlers), lg.level, lg.propagate) for lg in loggers]
    yield
    for logger, handlers, level, propagate in kept:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def written(form: logs.Format, level: str) -> str:
    """What the log says of a failure whose text quotes a content."""
    stream = io.StringIO()
    logs.set_up(form, level, stream)
    log = logging.getLogger("walytis_vault.bus.test")
    log.info("not important")
    try:
        raise ValueError("quoted content")
    except ValueError:
        log.exception("it failed\nready ipc:///forged")
    logging.getLogger("some.library").error("quoted by a library")
    return stream.getvalue()


@pytest.mark.usefixtures("_loggers")
def test_logs_as_json() -> None:
    """Each record is one JSON document with time, level, place and message; an exception shows no text."""
    (line,) = written("json", "warning").splitlines()
    record = json.loads(line)
    assert set(record) == {"time", "level", "where", "message", "error"}
    assert (record["level"], record["where"]) == ("error", "bus.test")
    assert record["error"].startswith("ValueError at unit/test_operations.py:")
    assert "quoted" not in line


@pytest.mark.usefixtures("_loggers")
def test_logs_as_text() -> None:
    """Each record is one line whatever it holds, and an exception shows no text."""
    (line,) = written("text", "warning").splitlines()
    assert " error   bus.test: it failed\\nready ipc:///forged [ValueError at " in line
    assert "quoted" not in line


@pytest.mark.usefixtures("_loggers")
def test_levels() -> None:
    """A lower level shows more; only debug shows what exceptions and libraries say."""
    assert len(written("json", "info").splitlines()) == 2
    loud = written("json", "debug")
    assert "quoted content" in loud
    assert "quoted by a library" in loud


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "192.168.1.1:1", "localhost:1", "127.0.0.1", ":1", "127.0.0.1:x"])
def test_metrics_are_for_loopback_only(address: str) -> None:
    """Any other address is refused before anything listens."""
    with pytest.raises(MisuseError):
        parse_address(address)


def test_metrics_over_http() -> None:
    """The endpoint gives Prometheus' text for one path, and nothing for others; a taken port is our error."""

    def collect() -> Iterator[Metric]:
        yield GaugeMetricFamily("walytis_vault_test", "A test.", value=7)

    server = MetricsServer("127.0.0.1:0", collect)
    try:
        with urllib.request.urlopen(server.url, timeout=5) as reply:
            (family,) = text_string_to_metric_families(reply.read().decode())
        assert (family.name, family.samples[0].value) == ("walytis_vault_test", 7)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.url.replace("/metrics", "/"), timeout=5)
        with pytest.raises(TransportError):
            MetricsServer(server.url.removeprefix("http://").removesuffix("/metrics"), collect)
    finally:
        server.close()


WAITS = """
import signal, sys, threading
from walytis_vault.stopping import Stop
stop = Stop()
stop.on_signals([signal.SIGTERM])
threading.Thread(target=threading.Event().wait, daemon=True).start()
(other,) = (t for t in threading.enumerate() if t is not threading.main_thread())
how = sys.argv[1]
if how == "signal":
    threading.Timer(0.2, lambda: signal.pthread_kill(other.ident, signal.SIGTERM)).start()
else:
    threading.Timer(0.2, stop.set).start()
stop.wait()
print("stopped", stop.is_set())
"""


@pytest.mark.parametrize("how", ["signal", "thread"])
def test_a_signal_to_any_thread_stops(how: str) -> None:
    """The main thread waits without a timeout, and wakes for a signal that the kernel gave to another thread."""
    command = [sys.executable, "-c", WAITS, how]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "stopped True\n"


def test_stop_does_not_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is one call without a timeout."""
    from walytis_vault import stopping

    stop, calls = stopping.Stop(), []

    def select(*arguments: Any) -> None:
        calls.append(arguments[3:])
        stop.set()

    monkeypatch.setattr("select.select", select)
    handler = signal.getsignal(signal.SIGTERM)
    stop.wait()
    assert calls == [()]
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """READY=1 goes to the socket that systemd names, a path or an abstract one; without one nothing happens."""
    name = f"@{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert service_manager.notify(service_manager.READY)
        assert manager.recv(100) == b"READY=1"
    for useless in ("", "relative", str(tmp_path / "none")):
        monkeypatch.setenv("NOTIFY_SOCKET", useless)
        assert not service_manager.notify(service_manager.READY)


def test_rates() -> None:
    """A rate is what was counted over the last minute, by the second."""
    meter = Meter()
    assert set(meter.rates().values()) == {0.0}
    for second in range(200):
        meter.counts.requests += 5
        meter.on_tick(float(second))
        meter.on_tick(second + 0.5)
    assert meter.rates()["requests"] == 5.0
    meter.counts.requests += 605
    meter.on_tick(200.0)
    assert meter.rates()["requests"] == 15.0
    assert meter.totals()["requests"] == 1605
