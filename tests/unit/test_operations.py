"""Logs without content, metrics on loopback only, a stop that nobody polls for, and the word to the service manager."""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
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
    logs.drain(10)
    return stream.getvalue()


class Unread(io.StringIO):
    """A stream whose reader does not read until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.read_on = threading.Event()

    def write(self, text: str) -> int:
        assert self.read_on.wait(30)
        return super().write(text)


@pytest.mark.usefixtures("_loggers")
def test_nobody_waits_for_whoever_reads_the_log() -> None:
    """With a log that nobody reads, what is logged is dropped and counted; the first lines and the count come later."""
    stream = Unread()
    logs.set_up("text", "debug", stream)
    log = logging.getLogger("walytis_vault.bus.test")
    for number in range(logs.WAITING_MOST + 500):
        log.warning("number %d", number)
    stream.read_on.set()
    logs.drain(10)
    log.warning("afterwards")
    logs.drain(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == logs.WAITING_MOST + 2
    assert lines[0].endswith("number 0")
    assert sum("500 records were dropped" in line for line in lines) == 1
    assert lines[-1].endswith("afterwards")


@pytest.mark.usefixtures("_loggers")
def test_what_is_said_again_and_again_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One place in the code cannot fill the log: some records of it are written, and how many more there were."""
    stream = io.StringIO()
    logs.set_up("text", "info", stream)
    now = [0.0]
    monkeypatch.setattr("walytis_vault.logs.time.monotonic", lambda: now[0])
    log = logging.getLogger("walytis_vault.bus.test")
    for number in range(1001):
        if number == 1000:
            now[0] = logs.PLACE_S
        log.warning("cut %d", number)
    log.warning("something else")
    logs.drain(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == logs.PLACE_MOST + 2
    assert lines[-2].endswith(f"cut 1000 (and {1000 - logs.PLACE_MOST} more)")
    assert lines[-1].endswith("something else")


TURNS = """
import logging, os, sys
from pathlib import Path
from walytis_vault import logs
file = Path(sys.argv[1])
os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
os.dup2(2, 1)
logs.FILE_MOST = 1000
logs.set_up("text", "debug", file=file)
for number in range(200):
    logging.getLogger("walytis_vault.test").warning("number %d", number)
logs.drain(10)
os.write(1, b"by somebody else\\n")
"""


def test_a_log_file_is_bounded(tmp_path: Path) -> None:
    """A full log file is kept once beside a new one, and whatever else writes to stdout and stderr follows."""
    file = tmp_path / "node.log"
    subprocess.run([sys.executable, "-c", TURNS, str(file)], env=ENVIRONMENT, timeout=20, check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["node.log", "node.log.1"]
    assert max(p.stat().st_size for p in tmp_path.iterdir()) < 1200
    assert file.stat().st_mode & 0o777 == 0o600
    lines = file.read_text().splitlines()
    assert lines[-2].endswith("number 199")
    assert lines[-1] == "by somebody else"


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
other = threading.Thread(target=threading.Event().wait, daemon=True)
other.start()
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


HANGS = """
import signal, sys, threading
from walytis_vault import stopping
stopping.END_WITHIN_S = 0.2
stop = stopping.Stop()
stop.on_signals([signal.SIGTERM])
held = threading.Lock()
held.acquire()
if sys.argv[1] == "signal":
    signal.raise_signal(signal.SIGTERM)
else:
    stop.set()
held.acquire()  # a close that never comes back
"""


@pytest.mark.parametrize("how", ["signal", "thread"])
def test_a_stop_that_hangs_ends_the_process(how: str) -> None:
    """When closing takes too long the process ends all the same."""
    subprocess.run([sys.executable, "-c", HANGS, how], env=ENVIRONMENT, timeout=20, check=True)


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
