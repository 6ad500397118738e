"""The command line as a real process, for tests: one command to its end, or a node for the time of a block."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import walytis_vault
from walytis_vault.cli import main

STEP_SECONDS = 60
START_SECONDS = 60
STOP_SECONDS = 10
UNKNOWN = "00" * 16
SOURCE = str(Path(walytis_vault.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE, "COLUMNS": "80"}


def words_for(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "walytis_vault", "--home", str(home), *words]


def run(home: Path, *words: str, stdin: bytes = b"", expect: int | None = 0) -> subprocess.CompletedProcess[bytes]:
    """Run one command line to its end in this process, and hold its exit code to `expect`.

    The same entry point as the program's, without the start of a process; `run_process` has that too.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    source = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = source, out, err
    try:
        code = main(["--home", str(home), *words])
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    return _held(code, words, _written(out), _written(err), expect)


def _written(stream: io.TextIOWrapper) -> bytes:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


def run_process(
    home: Path, *words: str, stdin: bytes = b"", expect: int | None = 0
) -> subprocess.CompletedProcess[bytes]:
    """Run one command line as a process of its own, and hold its exit code to `expect`."""
    done = subprocess.run(
        words_for(home, *words), input=stdin, env=ENVIRONMENT, capture_output=True, timeout=STEP_SECONDS, check=False
    )
    return _held(done.returncode, words, done.stdout, done.stderr, expect)


def _held(
    code: int, words: tuple[str, ...], out: bytes, err: bytes, expect: int | None
) -> subprocess.CompletedProcess[bytes]:
    assert expect is None or code == expect, (words, code, out[-500:], err[-2000:])
    return subprocess.CompletedProcess(words, code, out, err)


def refused(home: Path, *words: str, stdin: bytes = b"") -> str:
    """Run a command that must fail: exit code 1, nothing on stdout, one line on stderr, which is returned."""
    # A `serve` that fails ends its process at once, by design.
    done = (run_process if words[0] == "serve" else run)(home, *words, stdin=stdin, expect=1)
    said = done.stderr.decode()
    assert done.stdout == b""
    assert said.count("\n") == 1, said
    assert said.startswith("walytis-vault: ")
    assert "Traceback" not in said
    assert "unexpected" not in said
    return said


def publish(home: Path, data: bytes, *words: str) -> str:
    """Publish from stdin; return the id."""
    return run(home, "publish", "-", *words, stdin=data).stdout.decode().split("\n")[0]


def as_json(home: Path, *words: str) -> Any:
    return json.loads(run(home, *words, "--json").stdout)


class Serving:
    """`walytis-vault serve` as a child process that ends with this one."""

    def __init__(self, home: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            words_for(home, "serve", "--until-eof", *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        self.said = ""

    def wait_ready(self) -> str:
        """Return the endpoint that the ready line names."""
        assert self.process.stderr is not None
        descriptor, deadline = self.process.stderr.fileno(), time.monotonic() + START_SECONDS
        while "\nready " not in f"\n{self.said}" or not self.said.endswith("\n"):
            left = deadline - time.monotonic()
            assert left > 0, f"not ready in time: {self.said}"
            if select.select([descriptor], [], [], left)[0]:
                part = os.read(descriptor, 65536)
                assert part, f"the node ended: {self.said}"
                self.said += part.decode()
        return next(line for line in self.said.splitlines() if line.startswith("ready ")).removeprefix("ready ")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float, bytes, bytes]:
        """Send a signal; return exit code, seconds until the end, and the rest of stdout and stderr."""
        began = time.monotonic()
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=STOP_SECONDS)
        return self.process.returncode, time.monotonic() - began, out, err

    def end(self) -> None:
        """Make sure that it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def serving(home: Path, *words: str) -> Iterator[Serving]:
    node = Serving(home, *words)
    try:
        node.wait_ready()
        yield node
    finally:
        node.end()
