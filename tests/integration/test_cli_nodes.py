"""Nodes as processes of the command line: passphrases, signals, crashes, and the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from support.command_line import (
    ENVIRONMENT,
    STOP_SECONDS,
    as_json,
    publish,
    refused,
    run,
    serving,
    words_for,
)


def test_wrong_passphrase_is_told(tmp_path: Path) -> None:
    """A passphrase vault opens with its passphrase, and says so for a wrong or a missing one, without asking."""
    home, right, wrong = tmp_path / "home", tmp_path / "right", tmp_path / "wrong"
    right.write_text("open sesame\n")
    wrong.write_text("open barley\n")
    run(home, "init", "--passphrase-file", str(right))
    assert "passphrase" in refused(home, "serve", "--passphrase-file", str(wrong))
    assert "passphrase" in refused(home, "serve")
    with serving(home, "--passphrase-file", str(right)) as node:
        content = publish(home, b"sealed")
        assert run(home, "get", content).stdout == b"sealed"
        code, seconds, out, _ = node.stop()
    assert (code, out) == (0, b"")
    assert seconds < STOP_SECONDS
    assert b"open sesame" not in b"".join(p.read_bytes() for p in home.rglob("*") if p.is_file())


def test_acknowledged_survives_a_killed_node(tmp_path: Path) -> None:
    """After SIGKILL everything that was acknowledged is there; Ctrl-C then ends the node well."""
    home = tmp_path / "home"
    run(home, "init")
    with serving(home) as node:
        content = publish(home, b"acknowledged", "--name", "kept")
        gone = publish(home, b"gone")
        run(home, "forget", gone)
        os.killpg(node.process.pid, signal.SIGKILL)
        node.process.wait(STOP_SECONDS)
        assert "serve" in refused(home, "ls")
    with serving(home) as node:
        assert run(home, "get", content).stdout == b"acknowledged"
        assert {r["content_id"]: r["state"] for r in as_json(home, "ls")} == {content: "available", gone: "forgotten"}
        refused(home, "get", gone)
        code, _, out, _ = node.stop(signal.SIGINT)
        assert (code, out) == (0, b"")


def test_node_ends_with_its_starter(tmp_path: Path) -> None:
    """A node that was started with --until-eof ends by itself when its starter is gone."""
    home = tmp_path / "home"
    run(home, "init")
    with serving(home) as node:
        assert node.process.stdin is not None
        node.process.stdin.close()
        assert node.process.wait(STOP_SECONDS) == 0


def test_demo_does_all_its_steps(tmp_path: Path) -> None:
    """`demo FILE` ends well, says how, and leaves nothing in the temporary folder."""
    (tmp_path / "one file.txt").write_text("shown")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        words_for(tmp_path, "demo", "--json", str(tmp_path / "one file.txt")),
        env={**ENVIRONMENT, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert "requesting it is refused" in done.stderr
    assert list(temporary.iterdir()) == []
