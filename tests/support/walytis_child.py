"""A real Walytis node in a child process that a test can kill, and the chain on it as a `Chain` over a pipe.

The embedded library owns process-wide state and cannot be stopped in-process. The child speaks length-prefixed
MessagePack on stdin and stdout, so every test also proves that the libraries leave stdout alone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from walytis_vault.domain.errors import TransportError, VaultError, error_from_code
from walytis_vault.domain.ports import BlockRef

ROOT = Path(__file__).parents[2]


class WalytisChild:
    """The parent's side: start, call, kill."""

    def __init__(
        self,
        home: Path,
        *,
        mode: str = "loopback",
        peers: tuple[str, ...] = (),
        proven: bool = True,
        repeats: bool = True,
    ) -> None:
        """Start the child; wait until its node runs.

        Args:
            proven: else it takes the versions for unknown ones.
            repeats: else upstream does not tell the leaves again after quiet seconds.
        """
        home.mkdir(parents=True, exist_ok=True)
        self.cwd = home / "cwd"
        self.cwd.mkdir(exist_ok=True)
        user = home / "user"
        user.mkdir(exist_ok=True)
        self.errors = home / "stderr.txt"
        environment = {
            **os.environ,
            "HOME": str(user),
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
        }
        environment.pop("XDG_CACHE_HOME", None)
        with self.errors.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.walytis_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self.cwd,
                env=environment,
            )
        self._lock = threading.Lock()
        self._replies: queue.Queue[dict[str, Any]] = queue.Queue()
        self._listeners: dict[str, list[Callable[[BlockRef], None]]] = {}
        threading.Thread(target=self._receive, daemon=True).start()
        settings = {"mode": mode, "peers": peers, "proven": proven, "repeats": repeats}
        started = self.call("start", home=str(home / "vault"), **settings)
        self.peer_id: str = started["peer_id"]
        self.addresses: list[str] = started["addresses"]
        self.fast_paths: bool = started["fast_paths"]

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def call(self, verb: str, **arguments: Any) -> Any:
        """Have the child do something. Raises the error of ours that the child raised."""
        with self._lock:
            assert self._process.stdin is not None
            try:
                _write(self._process.stdin, {"verb": verb, **arguments})
                reply = self._replies.get(timeout=60)
            except (OSError, queue.Empty) as e:
                raise TransportError(f"the child does not answer {verb}") from e
        if "error" in reply:
            raise error_from_code(reply["error"], reply["message"])
        if "crash" in reply:
            raise AssertionError(f"a raw error left the adapter: {reply['crash']}")
        return reply["result"]

    def create_chain(self, name: str) -> RemoteChain:
        """Create a chain on the child's node."""
        return RemoteChain(self, self.call("create_chain", name=name))

    def open_chain(self, chain_id: str) -> RemoteChain:
        """Open a chain on the child's node."""
        return RemoteChain(self, self.call("open_chain", chain=chain_id))

    def listen(self, chain_id: str, callback: Callable[[BlockRef], None]) -> Callable[[], None]:
        """Pass the child's hints on."""
        first = chain_id not in self._listeners
        callbacks = self._listeners.setdefault(chain_id, [])
        callbacks.append(callback)
        if first:
            self.call("listen", chain=chain_id)
        return lambda: callbacks.remove(callback)

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Idempotent."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and pipe is self._process.stdin:
                with contextlib.suppress(OSError):
                    pipe.close()

    def stop(self) -> int:
        """End the child the way a node ends. Returns its exit code."""
        with contextlib.suppress(TransportError):
            self.call("stop")
        code = self._process.wait(10)
        self.kill()
        return code

    def _receive(self) -> None:
        assert self._process.stdout is not None
        while (message := _read(self._process.stdout)) is not None:
            if "heard" in message:
                for callback in list(self._listeners.get(message["chain"], ())):
                    callback(msgspec.convert(message["heard"], BlockRef))
            else:
                self._replies.put(message)
        self._replies.put({"error": "transport", "message": "the child ended"})


class RemoteChain:
    """`Chain` on the child's node."""

    def __init__(self, child: WalytisChild, chain_id: str) -> None:
        """Name a chain of the child."""
        self._child = child
        self._id = chain_id

    @property
    def chain_id(self) -> str:
        """See the port."""
        return self._id

    def append(self, content: bytes) -> BlockRef:
        """See the port."""
        return self._ref(self._child.call("append", chain=self._id, content=content))

    def build_on(self, keys: Iterable[bytes]) -> None:
        """See the port."""
        self._child.call("build_on", chain=self._id, keys=list(keys))

    def append_many(self, contents: list[bytes], threads: int = 1) -> list[BlockRef]:
        """Append from several threads of the child at once."""
        made = self._child.call("append_many", chain=self._id, contents=contents, threads=threads)
        return [self._ref(ref) for ref in made]

    def read(self, ref: BlockRef, *, timeout: float = 10.0) -> bytes:
        """See the port."""
        plain = msgspec.to_builtins(ref, builtin_types=(bytes,))
        content: bytes = self._child.call("read", chain=self._id, ref=plain, timeout=timeout)
        return content

    def leaves(self, but: Set[bytes] = frozenset()) -> list[BlockRef]:
        """See the port."""
        return [self._ref(ref) for ref in self._child.call("leaves", chain=self._id, but=list(but))]

    def blocks(self) -> Iterator[BlockRef]:
        """See the port."""
        return (self._ref(ref) for ref in self._child.call("blocks", chain=self._id))

    def find(self, key: bytes) -> BlockRef | None:
        """See the port."""
        found = self._child.call("find", chain=self._id, key=key)
        return None if found is None else self._ref(found)

    def listen(self, callback: Callable[[BlockRef], None]) -> Callable[[], None]:
        """See the port."""
        return self._child.listen(self._id, callback)

    @staticmethod
    def _ref(fields: Any) -> BlockRef:
        return msgspec.convert(fields, BlockRef)


def _write(pipe: BinaryIO | Any, message: dict[str, Any]) -> None:
    data = msgspec.msgpack.encode(message)
    pipe.write(struct.pack(">I", len(data)) + data)
    pipe.flush()


def _read(pipe: Any) -> dict[str, Any] | None:
    head = pipe.read(4)
    if len(head) < 4:
        return None
    size = struct.unpack(">I", head)[0]
    if size > 1 << 28:
        raise AssertionError(f"something else wrote to stdout: {head!r}")
    message: dict[str, Any] = msgspec.msgpack.decode(pipe.read(size))
    return message


class _Server:
    """The child's side."""

    def __init__(self) -> None:
        self._out_lock = threading.Lock()
        self._runtime: Any = None
        self._chains: dict[str, Any] = {}
        self._keeper: Any = None

    def run(self) -> None:
        """Serve until stdin ends."""
        while (request := _read(sys.stdin.buffer)) is not None:
            verb = request.pop("verb")
            try:
                self._send({"result": getattr(self, f"do_{verb}")(**request)})
            except VaultError as e:
                self._send({"error": e.code, "message": str(e)})
            except BaseException as e:
                self._send({"crash": repr(e)})
            if verb == "stop":
                break
        os._exit(0)

    def _send(self, message: dict[str, Any]) -> None:
        with self._out_lock:
            _write(sys.stdout.buffer, message)

    def do_start(
        self, home: str, mode: str, peers: list[str], proven: bool = True, repeats: bool = True
    ) -> dict[str, Any]:
        import importlib

        from walytis_vault.adapters.walytis import upstream
        from walytis_vault.adapters.walytis.runtime import WalytisRuntime

        if not proven:
            upstream.PROVEN_VERSIONS["walytis_beta"] = "0"
        self._runtime = WalytisRuntime.start(Path(home), mode=mode, peers=tuple(peers))
        if not repeats:
            networking: Any = importlib.import_module("walytis_beta.networking")
            networking.STARTUP_BLOCKLISTENER_PATIENCE = 1_000_000
        return {
            "peer_id": self._runtime.peer_id,
            "addresses": self._runtime.addresses,
            "fast_paths": self._runtime.fast_paths_active,
        }

    def do_stop(self) -> None:
        self._runtime.stop()

    def do_connect(self, address: str) -> None:
        self._runtime.connect(address)

    def do_peers(self) -> list[str]:
        peers: list[str] = self._runtime.peers()
        return peers

    def do_create_chain(self, name: str) -> str:
        return self._keep(self._runtime.create_chain(name))

    def do_open_chain(self, chain: str) -> str:
        return self._keep(self._runtime.open_chain(chain))

    def _keep(self, chain: Any) -> str:
        self._chains[chain.chain_id] = chain
        return str(chain.chain_id)

    def do_append(self, chain: str, content: bytes) -> Any:
        return _plain(self._chains[chain].append(content))

    def do_build_on(self, chain: str, keys: list[bytes]) -> None:
        self._chains[chain].build_on(keys)

    def do_append_many(self, chain: str, contents: list[bytes], threads: int) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            return [_plain(ref) for ref in pool.map(self._chains[chain].append, contents)]

    def do_read(self, chain: str, ref: Any, timeout: float) -> bytes:
        content: bytes = self._chains[chain].read(msgspec.convert(ref, BlockRef), timeout=timeout)
        return content

    def do_leaves(self, chain: str, but: list[bytes]) -> Any:
        return [_plain(ref) for ref in self._chains[chain].leaves(frozenset(but))]

    def do_blocks(self, chain: str) -> Any:
        return [_plain(ref) for ref in self._chains[chain].blocks()]

    def do_find(self, chain: str, key: bytes) -> Any:
        found = self._chains[chain].find(key)
        return None if found is None else _plain(found)

    def do_block_file(self, chain: str, ref: Any) -> bytes:
        data: bytes = self._chains[chain].block_file(msgspec.convert(ref, BlockRef))
        return data

    def do_take_in(self, chain: str, block_id: bytes, file_data: bytes) -> bool:
        known: bool = self._chains[chain].take_in(block_id, file_data)
        return known

    def do_waiting(self, chain: str) -> int:
        waiting: int = self._chains[chain].waiting()
        return waiting

    def do_die_at(self, point: str, after: int) -> None:
        """Kill this process when a fault point is reached for the given time."""
        from walytis_vault.domain import faults

        seen = [0]

        def hook(name: str) -> None:
            seen[0] += name == point
            if seen[0] >= after:
                os._exit(9)

        faults.install(hook)

    def do_listen(self, chain: str) -> None:
        self._chains[chain].listen(lambda ref: self._send({"heard": _plain(ref), "chain": chain}))

    def do_run(self, module: str, function: str, arguments: dict[str, Any]) -> Any:
        """Call a function of a test's own module with the runtime, for what the port does not cover."""
        import importlib

        return getattr(importlib.import_module(module), function)(self._runtime, **arguments)


def _plain(ref: BlockRef) -> Any:
    return msgspec.to_builtins(ref, builtin_types=(bytes,))


def _end_with_parent() -> None:
    """Have the system kill this process when the test's process ends, whatever it is doing then (Linux)."""
    import ctypes
    import signal

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    _end_with_parent()
    _Server().run()
