"""A real PostgreSQL server for tests: the machine's own programs, in a temporary folder, on a unix socket only.

It runs as an ordinary user (PostgreSQL refuses root) and ends with the process that started it. Tests that need it
are skipped where there are no programs, unless WALYTIS_VAULT_REQUIRE_POSTGRES says that there must be.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg

OWNER = "owner"
NOBODY = 65534
START_S = 30.0
READY = b"database system is ready to accept connections"


def find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`: $WALYTIS_VAULT_POSTGRES_BIN, PATH, or where Debian puts them."""
    named = os.environ.get("WALYTIS_VAULT_POSTGRES_BIN")
    on_path = shutil.which("postgres")
    places = [Path(named)] if named else []
    places += [Path(on_path).resolve().parent] if on_path else []
    debian = (p for p in Path("/usr/lib/postgresql").glob("*/bin") if p.parent.name.isdigit())
    places += sorted(debian, key=lambda p: int(p.parent.name), reverse=True)
    return next((p for p in places if all((p / name).exists() for name in ("initdb", "postgres"))), None)


def _account() -> dict[str, object]:
    """How to start a program as an ordinary user."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _end_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT, 0, 0, 0)


class PostgresServer:
    """One cluster in a folder of its own. `start` and `stop` as often as wanted; `remove` at the end."""

    def __init__(self, programs: Path, *, fsync: bool = False) -> None:
        """Make the cluster: local users are trusted, but `limited` gives a password."""
        self._programs = programs
        self._fsync = "on" if fsync else "off"
        self.folder = Path(tempfile.mkdtemp(prefix="wv-pg-", dir="/tmp"))  # a socket's path is short
        self.data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        options = ["-D", self.data, "-U", OWNER, "--auth=trust", "--no-sync", "-E", "UTF8", "--no-locale"]
        made = subprocess.run(
            [programs / "initdb", *options],
            capture_output=True,
            cwd=self.folder,
            timeout=60,
            check=False,
            **_account(),  # type: ignore[call-overload]
        )
        if made.returncode:
            raise AssertionError(f"initdb failed: {made.stderr.decode()[-1000:]}")
        rules = self.data / "pg_hba.conf"
        rules.write_text("local all limited scram-sha-256\nlocal all all trust\n")

    @property
    def pid(self) -> int:
        """Process id of the server; 0 when it does not run."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server; return when it takes connections."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": self._fsync,
            "max_connections": "60",
            "autovacuum_naptime": "5s",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", self.data, *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            preexec_fn=_end_with_parent,
            **_account(),  # type: ignore[call-overload]
        )
        ready = threading.Event()
        threading.Thread(target=self._listen, args=(self._process, ready), daemon=True).start()
        if not ready.wait(START_S):
            self.stop()
            raise AssertionError(f"the server did not start: see {self.folder / 'log'}")

    def _listen(self, process: subprocess.Popen[bytes], ready: threading.Event) -> None:
        assert process.stderr is not None
        with (self.folder / "log").open("ab") as log:
            for line in process.stderr:
                log.write(line)
                log.flush()
                if READY in line:
                    ready.set()

    def stop(self, *, crash: bool = False) -> None:
        """End the server in order, or (`crash`) so that it must recover at the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        """Stop, and delete the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", *, user: str = OWNER, password: str = "") -> str:
        """A URL for it."""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{user}{secret}@/{database}?host={quote(str(self.folder))}"

    def run(self, *statements: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run statements one by one as the owner; the rows of the last."""
        rows: list[tuple[object, ...]] = []
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows


def running_server() -> Iterator[PostgresServer]:
    """A server that runs until the generator is closed."""
    programs = find_programs()
    if programs is None:
        raise FileNotFoundError("no initdb and postgres: on Debian, apt install postgresql")
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()
