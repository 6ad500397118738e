"""The node's numbers for Prometheus: `GET /metrics` on a loopback port, when it is switched on.

Counts and sizes only: no content, no name, no id. Any program of this machine may read them. Names: docs/operations.md.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from walytis_vault.domain.errors import MisuseError, TransportError

PREFIX: Final = "walytis_vault_"
PATIENCE_S: Final = 5.0
"""Seconds that a connection may take to ask."""
READERS: Final = 4
"""Connections that are answered at once (a count)."""


class MetricsServer:
    """Serves until `close`.

    Args:
        address: `HOST:PORT` on loopback; port 0 for any that is free.
        collect: gives the metrics. Called for each request.
    Raises:
        MisuseError: no loopback address. TransportError: the port is taken.
    """

    def __init__(self, address: str, collect: Callable[[], Iterator[Metric]]) -> None:
        host, port = parse_address(address)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(collect))
        handler = type("Handler", (_Handler,), {"registry": registry, "slots": threading.Semaphore(READERS)})
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as e:
            raise TransportError(f"cannot serve metrics on {address}: {e.strerror or e}") from e
        self.url = f"http://{host}:{self._server.server_address[1]}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of a loopback address. Raises MisuseError for any other."""
    host, _, port = address.rpartition(":")
    try:
        loopback = ipaddress.IPv4Address(host).is_loopback
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        loopback, number = False, -1
    if not loopback or not 0 <= number <= 65535:
        raise MisuseError(f"metrics are served on loopback only: 127.0.0.1:PORT, not {address!r}")
    return host, number


class _Collector(Collector):
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    slots: threading.Semaphore
    timeout = PATIENCE_S
    server_version = "walytis-vault"
    sys_version = ""

    def do_GET(self) -> None:
        """The only thing to ask."""
        if self.path.split("?")[0] != "/metrics":
            self._answer(404, "text/plain", b"GET /metrics\n")
            return
        if not self.slots.acquire(blocking=False):
            self._answer(503, "text/plain", b"too many at once: ask again\n")
            return
        try:
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(self.registry))
        finally:
            self.slots.release()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """What somebody sends does not go into the log."""


def families(details: Mapping[str, Any], positions: Mapping[str, int], *, healthy: bool) -> Iterator[Metric]:
    """The metrics of a node.

    Args:
        details: as `status` shows them.
        positions: log and views -> position.
        healthy: whether nothing is wrong.
    """
    yield _gauge("healthy", "1 when nothing is wrong.", int(healthy))
    place = GaugeMetricFamily(PREFIX + "position", "How far the log and each view are.", labels=["of"])
    for name, position in positions.items():
        place.add_metric([name], position)
    yield place
    bus = details["bus"]
    for name, total in bus["totals"].items():
        yield CounterMetricFamily(f"{PREFIX}bus_{name}", "Of the bus, since the node started.", value=total)
    for name in ("connections", "running", "downloads", "uploads", "subscriptions", "bytes_down", "bytes_up"):
        yield _gauge(f"bus_{name}", "Of the bus, now.", bus[name])
    queued = GaugeMetricFamily(PREFIX + "bus_queued", "Tasks that wait for a thread.", labels=["lane"])
    for lane, depth in bus["queued"].items():
        queued.add_metric([lane], depth)
    yield queued
    yield _gauge("waiting_appends", "Events that wait for their block.", details["waiting_appends"])
    disk = GaugeMetricFamily(PREFIX + "disk_bytes", "Bytes that are free, and taken by each part.", labels=["of"])
    for part, size in details["disk"].items():
        if size is not None:
            disk.add_metric([part], size)
    yield disk
    for name in ("contents", "keys", "forgotten"):
        yield _gauge(f"store_{name}", "Of the content store (a count).", details["store"][name])


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)
