"""`Node`: a vault's node as a supervised child process, and `serve`: the same in the foreground.

The embedded Walytis library owns process-wide state and cannot be stopped quickly inside a host's own process;
so `Node` starts a process of its own and ends it, within a bound, whatever happens to the host.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, Self

import msgspec

from walytis_vault.domain.errors import MisuseError, StorageError, TimedOutError, TransportError, error_from_code
from walytis_vault.fetching import AS_BEFORE, FetchWish
from walytis_vault.process import LOG_NAME, Answer, Job
from walytis_vault.stopping import Stop

START_TIMEOUT_S: Final = 120.0
"""A start that has much to catch up may take long; a healthy one takes about a second."""
STOP_TIMEOUT_S: Final = 5.0
MAX_ANSWER: Final = 1 << 20
CHILD_MODULE = "walytis_vault.process"
"""What runs in the child; tests put one in its place that can be told to crash."""


class VaultInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was made."""

    vault_id: str
    did: str


class Node:
    """A running node. A context manager: the vault is served while it is open."""

    def __init__(self, home: Path, child: subprocess.Popen[bytes], endpoint: str) -> None:
        """Use `create` or `open`."""
        self.home = home
        self.endpoint = endpoint
        self._child = child
        self._closing = threading.Lock()

    @classmethod
    def create(
        cls,
        home: Path | str,
        *,
        name: str = "vault",
        passphrase: str | None = None,
        network: str = "loopback",
        removal: str = "any",
        views: str | None = None,
        listen: str | None = None,
    ) -> Node:
        """Make a vault in an empty folder and serve it.

        Args:
            home: folder of the vault; made if missing.
            name: local name, for people; it is never published.
            passphrase: seals the master key; None makes a key file (mode 0600) instead.
            network: "loopback", "lan" or "public".
            removal: who may remove members, for ever: "any" member or the "founder".
            views: where the views are kept: `sqlite` (in the home; the same as None), or a PostgreSQL URL. A password
                in it is used now and not stored: see docs/operations.md.
            listen: where clients connect, instead of a socket in the home: `tcp://127.0.0.1:PORT` (`*`: any free port).
        Raises:
            MisuseError: there is a vault already, the folder holds something else, or an argument is wrong.
            StorageError, TransportError: it could not be made; nothing of it remains.
        """
        if listen is not None:
            from walytis_vault.bus.endpoint import check_listen

            check_listen(listen)
        create_vault(Path(home), name=name, passphrase=passphrase, network=network, removal=removal, views=views)
        return cls.open(home, passphrase=passphrase, views=views, listen=listen)

    @classmethod
    def open(
        cls,
        home: Path | str,
        *,
        passphrase: str | None = None,
        network: str | None = None,
        fetch: str | None = None,
        fetch_limit: int | None = None,
        fetch_space: int | None = None,
        views: str | None = None,
        listen: str | None = None,
    ) -> Node:
        """Serve a vault that was made or joined before.

        Args:
            network: None for the mode that it was made with.
            fetch: which contents of other members are fetched before anybody asks: "all", "small" or "on-request".
                Kept for later starts, as the two bounds are; None leaves it as it is.
            fetch_limit: bytes of the largest content that is fetched unasked (without it 1 MiB for "small").
            fetch_space: bytes of contents on disk from which on nothing more is fetched unasked.
            views: move the views there (see `create`), None to leave them where they are.
            listen: as in `create`; not kept for later starts.
        Raises:
            MisuseError: no vault there. WrongPassphraseError, LockedError: it does not open.
            AlreadyRunningError: another node runs on this home.
            StorageError, TransportError: it does not start; the message says why.
        """
        path = Path(home).absolute()
        wish = FetchWish(mode=fetch, limit=fetch_limit, space=fetch_space)
        job = Job(
            kind="serve",
            home=str(path),
            passphrase=passphrase,
            network=network,
            fetch=wish,
            views=views,
            listen=listen,
        )
        child = _start(job, path)
        try:
            answer = _answer(child, START_TIMEOUT_S)
        except BaseException:
            _end(child)
            raise
        return cls(path, child, answer.endpoint)

    @property
    def pid(self) -> int:
        """Process id of the node."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the node's process is alive."""
        return self._child.poll() is None

    def close(self) -> None:
        """Stop the node within 5 seconds; nothing acknowledged is lost. Idempotent."""
        with self._closing:
            _end(self._child)

    def kill(self) -> None:
        """End the node at once, as a power cut would. Acknowledged work is there at the next start."""
        with self._closing:
            self._child.kill()
            self._child.wait(STOP_TIMEOUT_S)
            _release(self._child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_vault(
    home: Path,
    *,
    name: str = "vault",
    passphrase: str | None = None,
    network: str,
    removal: str = "any",
    views: str | None = None,
) -> VaultInfo:
    """Make a vault of one member, in a child process, and return when it is complete. See `Node.create`."""
    home = home.absolute()
    job = Job(
        kind="found",
        home=str(home),
        name=name,
        passphrase=passphrase,
        network=network,
        removal=removal,
        views=views,
    )
    child = _start(job, None)
    try:
        answer = _answer(child, START_TIMEOUT_S)
    finally:
        _end(child)
    return VaultInfo(vault_id=answer.vault_id, did=answer.did)


def join_vault(
    home: Path,
    code: str,
    *,
    name: str = "vault",
    passphrase: str | None = None,
    network: str = "loopback",
    on_progress: Callable[[str], None] = lambda _step: None,
) -> VaultInfo:
    """Join the vault that a code invites to, in an empty folder; the inviter's node must run. Repeatable.

    Args:
        on_progress: told of each step as it begins.
    Raises:
        MisuseError: no code, or an expired one; the folder holds something. PermissionRefusedError, ConflictError,
        ForgottenError: the code was revoked, used, or has expired. TransportError, TimedOutError: repeat it.
    """
    home = home.absolute()
    job = Job(kind="join", home=str(home), name=name, passphrase=passphrase, network=network, code=code)
    child = _start(job, None)
    try:
        answer = _answer(child, START_TIMEOUT_S, on_progress)
    finally:
        _end(child)
    return VaultInfo(vault_id=answer.vault_id, did=answer.did)


def serve(
    home: Path,
    *,
    passphrase: str | None = None,
    network: str | None = None,
    fetch: FetchWish = AS_BEFORE,
    views: str | None = None,
    listen: str | None = None,
    metrics: str | None = None,
    on_metrics: Callable[[str], None] = lambda _url: None,
    on_ready: Callable[[str], None],
) -> int:
    """Serve a vault in this process until SIGINT or SIGTERM. Afterwards end the process with `os._exit(code)`.

    Args:
        listen: where clients connect, instead of a socket in the home: `tcp://127.0.0.1:PORT`.
        metrics: loopback address for a Prometheus endpoint; None for none. Its URL goes to `on_metrics`.
        fetch: changes what is fetched unasked, from now on.
        on_ready: called with the endpoint when requests are answered.
    Returns:
        The exit code, 0.
    Raises:
        As `Node.open`.
    """
    from walytis_vault.composition import run_node

    stop = Stop()
    stop.on_signals((signal.SIGINT, signal.SIGTERM))
    run_node(
        home.absolute(),
        passphrase=passphrase,
        network=network,
        fetch=fetch,
        views=views,
        listen=listen,
        on_ready=on_ready,
        stop=stop,
        metrics=metrics,
        on_metrics=on_metrics,
    )
    return 0


def _start(job: Job, home: Path | None) -> subprocess.Popen[bytes]:
    """Start the child. A serving node writes its log into its home, since the host's stderr is the host's."""
    if home is not None and not (home / "vault.json").exists():
        raise MisuseError(f"no vault in {home}: make one with `walytis-vault init`, or `join` one")
    try:
        with contextlib.ExitStack() as opened:
            log: int | IO[bytes] = subprocess.DEVNULL
            if home is not None:
                log = opened.enter_context(os.fdopen(os.open(home / LOG_NAME, _LOG_FLAGS, 0o600), "wb"))
            child = subprocess.Popen(
                [sys.executable, "-m", CHILD_MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                start_new_session=True,
            )
        try:
            assert child.stdin is not None
            child.stdin.write(msgspec.json.encode(job) + b"\n")
            child.stdin.flush()
        except BaseException:
            _end(child)
            raise
    except OSError as e:
        raise StorageError(f"cannot start the node's process: {e.strerror or e}") from e
    return child


_LOG_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC


def _answer(
    child: subprocess.Popen[bytes], timeout: float, on_progress: Callable[[str], None] = lambda _step: None
) -> Answer:
    """Read the child's answer, and the steps that it tells of before; its error becomes ours.

    Args:
        timeout: seconds without any word.
    """
    assert child.stdout is not None
    buffered, until = b"", time.monotonic() + timeout
    while True:
        line, newline, rest = buffered.partition(b"\n")
        if newline:
            answer, buffered = _decode(line), rest
            if not answer.progress:
                break
            on_progress(answer.progress)
            until = time.monotonic() + timeout
            continue
        left = until - time.monotonic()
        if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
            raise TimedOutError(f"the node was not ready after {timeout:.0f} s: see node.log in its home")
        part = os.read(child.stdout.fileno(), 65536)
        if not part or len(buffered) > MAX_ANSWER:
            raise TransportError(f"the node's process ended with code {child.wait(STOP_TIMEOUT_S)}: see its node.log")
        buffered += part
    if answer.error_code:
        raise error_from_code(answer.error_code, answer.error_message)
    return answer


def _decode(line: bytes) -> Answer:
    try:
        return msgspec.json.decode(line, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise TransportError("the node's process answered nonsense") from e


def _end(child: subprocess.Popen[bytes]) -> None:
    """Close the lifeline, wait, and only then use force."""
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(STOP_TIMEOUT_S)
    _release(child)


def _release(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
