"""The main job, shown on real input with real processes: `walytis-vault demo [FILE…]`.

A vault in a temporary home, its node in one process, a publisher in a second and a requester in a third, talking only
through the bus. It refuses to pass over anything: each step is checked, and the first that fails ends it with exit
code 1. What it must show is in design.md 9 and in the README.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from walytis_vault.domain.errors import MisuseError

SEED = 20261122
GENERATED_MIB = 24
STEP_SECONDS = 300.0
"""No single command may take longer, whatever files are given."""
READY_SECONDS = 30.0
STOP_SECONDS = 10.0


class StepFailedError(Exception):
    """A step did not do what the demo promises. The text says which, and what it said."""


@dataclass
class Story:
    """What is told, and when."""

    out: TextIO
    started: float = field(default_factory=time.monotonic)

    def tell(self, text: str) -> None:
        """Print one line with the seconds since the start."""
        self.out.write(f"{time.monotonic() - self.started:6.1f} s  {text}\n")
        self.out.flush()

    def show(self, block: str) -> None:
        """Print a command's own output, indented."""
        for line in block.rstrip("\n").splitlines():
            self.out.write(f"          | {line}\n")


@dataclass
class Program:
    """The command line, run as processes of its own on one home."""

    home: Path
    story: Story
    name: str = ""
    """Whose it is, where there are several."""

    def tell(self, *words: str, end: str = "") -> None:
        """Tell a command as somebody would type it."""
        self.story.tell(f"{self.name}$ walytis-vault {shlex.join(words)}{end}")

    def command(self, *words: str) -> list[str]:
        """The words that start it. -P: a file in the working directory must not stand in for a module."""
        return [sys.executable, "-P", "-m", "walytis_vault", "--home", str(self.home), *words]

    def run(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one command to its end.

        Raises:
            StepFailedError: it ended with another exit code than `expect`.
        """
        self.tell(*words)
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=STEP_SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != expect:
            said = done.stderr.strip() or done.stdout.strip() or "nothing"
            raise StepFailedError(f"`{words[0]}` ended with exit code {done.returncode}, not {expect}. It said: {said}")
        return done

    @contextlib.contextmanager
    def serving(self) -> Iterator[subprocess.Popen[str]]:
        """Run the node in a child process for the time of the block.

        The node ends when its stdin closes: should this process be killed, the node goes with it.
        """
        self.tell("serve", end=" &")
        node = subprocess.Popen(
            self.command("serve", "--until-eof"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        said: list[str] = []
        ready = threading.Event()
        listener = threading.Thread(target=self._listen, args=(node.stderr, said, ready), daemon=True)
        listener.start()
        try:
            if not ready.wait(READY_SECONDS) or node.poll() is not None or not said[-1].startswith("ready "):
                raise StepFailedError(f"the node did not become ready. It said: {' '.join(said).strip() or 'nothing'}")
            self.story.tell(f"the node (process {node.pid}) answers at {said[-1].removeprefix('ready ').strip()}")
            yield node
        finally:
            with contextlib.suppress(ProcessLookupError):
                node.terminate()
            try:
                node.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()

    @staticmethod
    def _listen(stream: TextIO, said: list[str], ready: threading.Event) -> None:
        """Keep what the node says until it is ready, then only keep its pipe from filling up."""
        for line in stream:
            if not ready.is_set():
                said.append(line)
            if line.startswith("ready "):
                ready.set()
        ready.set()


def generate(target: Path, mebibytes: int = GENERATED_MIB, seed: int = SEED) -> Path:
    """Write a file of pseudo-random bytes, the same for the same seed."""
    source = random.Random(seed)  # noqa: S311  (test data)
    with target.open("wb") as out:
        for _ in range(mebibytes):
            out.write(source.randbytes(1 << 20))
    return target


def default_files(folder: Path) -> list[Path]:
    """Some files of this project, and a large one made on the spot."""
    package = Path(__file__).parent
    readme = package.parent.parent / "README.md"
    ours = [readme, package / "demo.py", package / "domain" / "events.py"]
    return [*(f for f in ours if f.is_file()), generate(folder / f"generated-{GENERATED_MIB}-MiB.bin")]


def run(files: Sequence[Path], *, as_json: bool = False) -> int:
    """Run the demo and return its exit code.

    Args:
        files: what to publish; none for files of this project and a generated one.
        as_json: tell the story on stderr, and one JSON document on stdout.

    Raises:
        MisuseError: one of the files is not a readable file.
    """
    for file in files:
        if not file.is_file() or not os.access(file, os.R_OK):
            raise MisuseError(f"{file} is not a readable file: the demo publishes files")

    def play(folder: Path, story: Story, outcome: dict[str, Any]) -> None:
        _play(Program(folder / "home", story), list(files) or default_files(folder), folder, outcome)

    return tell(play, {"ok": False}, as_json=as_json)


def tell(play: Callable[[Path, Story, dict[str, Any]], None], outcome: dict[str, Any], *, as_json: bool) -> int:
    """Play a story in a temporary folder, and say how it ended; returns the exit code.

    Args:
        play: plays in a folder, and adds to the outcome. Raises StepFailedError.
        outcome: what the JSON document says, with "ok" false.
    """
    story = Story(sys.stderr if as_json else sys.stdout)
    folder = Path(tempfile.mkdtemp(prefix="walytis-vault-demo-"))
    try:
        play(folder, story, outcome)
        outcome["ok"] = True
    except (StepFailedError, subprocess.TimeoutExpired) as error:
        outcome["failed"] = str(error)
        story.tell(f"FAILED: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    outcome["seconds"] = round(time.monotonic() - story.started, 1)
    if outcome["ok"]:
        story.tell("done: every step did what it should; nothing of it is left on this machine")
    if as_json:
        sys.stdout.write(json.dumps(outcome) + "\n")
    return 0 if outcome["ok"] else 1


def _play(program: Program, files: list[Path], folder: Path, outcome: dict[str, Any]) -> None:
    story = program.story
    story.tell(f"a vault in {program.home}; nothing leaves 127.0.0.1")
    story.show(program.run("init", "--name", "demo").stdout)
    with program.serving() as node:
        ids = [_publish(program, file) for file in files]
        _request_back(program, files, ids, folder)
        story.show(program.run("ls").stdout)
        _forget(program, ids[0])
        story.show(program.run("audit", "--read-data").stdout)
        began = time.monotonic()
        node.terminate()
        code = node.wait(STOP_SECONDS)
        if code != 0:
            raise StepFailedError(f"the node ended with exit code {code}")
        story.tell(f"the node has stopped, in {time.monotonic() - began:.1f} s")
    outcome["published"] = dict(zip(ids, [str(f) for f in files], strict=True))
    outcome["forgotten"] = ids[0]


def _publish(program: Program, file: Path) -> str:
    began = time.monotonic()
    said = program.run("publish", str(file)).stdout
    program.story.tell(f"published {_rate(file.stat().st_size, time.monotonic() - began)}: {said.strip()}")
    return said.split("\n", 1)[0]


def _request_back(program: Program, files: list[Path], ids: list[str], folder: Path) -> None:
    for number, (file, content_id) in enumerate(zip(files, ids, strict=True)):
        copy = folder / f"back-{number}"
        began = time.monotonic()
        program.run("get", content_id, "-o", str(copy))
        spent = time.monotonic() - began
        if not filecmp.cmp(file, copy, shallow=False):
            raise StepFailedError(f"{file} came back with other bytes")
        program.story.tell(f"requested {_rate(copy.stat().st_size, spent)}: the same bytes as {file.name}")
        copy.unlink()


def _forget(program: Program, content_id: str) -> None:
    story = program.story
    story.show(program.run("forget", content_id, "--reason", "the demo shows forgetting").stdout)
    refused = program.run("get", content_id, expect=1)
    story.tell("requesting it is refused:")
    story.show(refused.stderr)
    rows = json.loads(program.run("ls", "--json").stdout)
    row = next((r for r in rows if r["content_id"] == content_id), None)
    if row is None or row["state"] != "forgotten" or row["name"]:
        raise StepFailedError(f"the catalogue does not show {content_id} as forgotten: {row}")
    story.tell("its record remains, without its name:")
    story.show("\n".join(line for line in program.run("log").stdout.splitlines() if content_id in line))


def _rate(count: int, seconds: float) -> str:
    return f"{count:,} bytes in {seconds:.2f} s, start of the process included"
