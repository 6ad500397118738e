"""Where a node listens, and how clients find it: `bus/endpoint.json` and the socket beside it.

A socket path longer than the kernel's limit is reached through an open descriptor of its folder, so nothing
lies outside the home. Refuses to take over a socket on which anybody answers. Spec: docs/bus-protocol.md.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Final

import msgspec

from walytis_vault.bus.gate import shut_name
from walytis_vault.bus.security import Z85Key, make_private_folder, read_private, write_private
from walytis_vault.domain.errors import AlreadyRunningError, MisuseError, NoNodeError, StorageError

SOCKET_NAME: Final = "node.ipc"
BULK_NAME: Final = "bulk.ipc"
ENDPOINT_NAME: Final = "endpoint.json"
_PATH_LIMIT: Final = 107
"""Bytes of a Unix socket's path, without the NUL (Linux)."""


class EndpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `endpoint.json`."""

    endpoint: str
    """`ipc://` and the absolute path, or `tcp://127.0.0.1:PORT`."""
    server_key: Z85Key
    pid: int
    version: int = 1
    bulk: str | None = None
    """Where the data of large streams may go, sealed: `ipc://` and an absolute path."""


class Address:
    """An endpoint that can be bound or connected to: holds the folder open when its path is long.

    Args:
        endpoint: `ipc://` and an absolute path, or `tcp://HOST:PORT`.
    Raises:
        MisuseError: anything else. NoNodeError: the folder of the socket does not exist.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._fd = -1
        self.path: str | None = None
        self.zmq = endpoint
        if endpoint.startswith("tcp://"):
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            if not host or not port.isdigit():
                raise MisuseError(f"a TCP endpoint is tcp://HOST:PORT, not {endpoint!r}")
            self._host, self._port = host, int(port)
            return
        if not endpoint.startswith("ipc:///"):
            raise MisuseError(f"an endpoint is ipc:///PATH or tcp://HOST:PORT, not {endpoint!r}")
        path = endpoint.removeprefix("ipc://")
        if len(os.fsencode(path)) > _PATH_LIMIT:
            folder, name = os.path.split(path)
            try:
                self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as e:
                raise NoNodeError(f"no node serves {folder}: {e.strerror or e}") from e
            path = f"/proc/self/fd/{self._fd}/{name}"
        self.path = path
        self.zmq = f"ipc://{path}"

    def answers(self, timeout: float = 1.0) -> bool:
        """Whether anybody accepts connections there: one plain connect, nothing is said."""
        if self.path is None:
            try:
                socket.create_connection((self._host, self._port), timeout).close()
            except OSError:
                return False
            return True
        return _accepts(self.path, timeout)

    def is_shut(self) -> bool:
        """Whether a node is there and lets nobody in just now (see gate.py)."""
        return self.path is not None and _accepts(str(shut_name(Path(self.path))), 1.0)

    def close(self) -> None:
        """Release the folder. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _accepts(path: str, timeout: float) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its queue of connections is full: somebody has it
        except OSError:
            return False
        return True


def prepare_socket(address: Address) -> None:
    """Clear a dead node's socket out of the way. Raises AlreadyRunningError when somebody answers on it."""
    if address.path is None:
        return
    if address.is_shut():
        raise AlreadyRunningError(f"somebody already serves {address.endpoint}: stop that node first")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(shut_name(Path(address.path)))
    try:
        info = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise StorageError(f"{address.endpoint} is in the way and is not a socket: move it elsewhere")
    if address.answers():
        raise AlreadyRunningError(f"somebody already serves {address.endpoint}: stop that node first")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address.path)


def check_listen(endpoint: str | None) -> None:
    """Raises MisuseError unless a node may listen there: on a socket, or on a port of a loopback address."""
    if endpoint is None or endpoint.startswith("ipc:///"):
        return
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        loopback = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        loopback = False
    if not endpoint.startswith("tcp://") or not loopback or not (port == "*" or port.isdigit()):
        raise MisuseError(f"the bus listens on loopback only: tcp://127.0.0.1:PORT, not {endpoint[:80]!r}")


def ipc_endpoint(folder: Path) -> str:
    """The default endpoint of a `bus` folder."""
    return f"ipc://{folder.absolute() / SOCKET_NAME}"


def write_record(folder: Path, record: EndpointRecord) -> None:
    """Tell clients where the node is, atomically. Raises StorageError."""
    make_private_folder(folder)
    write_private(folder / ENDPOINT_NAME, msgspec.json.encode(record))


def remove_record(folder: Path) -> None:
    """The node is no longer there. Never raises: clients also notice that nobody answers."""
    with contextlib.suppress(OSError):
        (folder / ENDPOINT_NAME).unlink(missing_ok=True)


def read_record(folder: Path) -> EndpointRecord:
    """Where the node of a `bus` folder is.

    Raises:
        NoNodeError: no node has said so. MisuseError, StorageError: the file is not private or unreadable.
    """
    hint = f"no node serves {folder.parent}: start one with `walytis-vault serve`"
    try:
        return msgspec.json.decode(read_private(folder / ENDPOINT_NAME), type=EndpointRecord)
    except FileNotFoundError as e:
        raise NoNodeError(hint) from e
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise NoNodeError(f"{folder / ENDPOINT_NAME} is damaged; {hint}") from e
