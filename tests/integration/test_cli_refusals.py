"""The command line on a real node, given what it cannot do: one clear line, exit code 1, and nothing lost.

One vault of one member, founded and served once for this module by the command line itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import (
    ENVIRONMENT,
    STEP_SECONDS,
    UNKNOWN,
    as_json,
    publish,
    refused,
    run,
    words_for,
)


@pytest.mark.parametrize("verb", ["get", "forget", "retract", "restore"])
def test_unknown_id_is_told(verb: str, home: Path) -> None:
    """An id that nobody published is refused by name."""
    assert UNKNOWN in refused(home, verb, UNKNOWN)


@pytest.mark.parametrize("verb", ["consent", "refuse", "withdraw"])
def test_unknown_ballot_is_told(verb: str, home: Path) -> None:
    """A ballot that nobody opened is refused by name."""
    assert UNKNOWN in refused(home, verb, UNKNOWN)


@pytest.mark.parametrize("text", ["xyz", "0" * 31, "0" * 33, "g" * 32, "../../etc/passwd", "🙂"])
def test_what_is_no_id_is_told(text: str, home: Path) -> None:
    """Text that cannot be an id is refused, with a word on what an id looks like."""
    assert "32 hex digits" in refused(home, "get", text)


def test_forgetting_twice_is_told(home: Path) -> None:
    """A forgotten content cannot be forgotten, revised or retracted again."""
    content = publish(home, b"x")
    run(home, "forget", content)
    assert "forgotten" in refused(home, "forget", content)
    assert "forgotten" in refused(home, "retract", content)
    assert "forgotten" in refused(home, "revise", content, "-", stdin=b"y")


def test_forgotten_content_leaves_no_output_file(home: Path, tmp_path: Path) -> None:
    """A refused `get -o` leaves the folder as it was, an older file of that name included."""
    content = publish(home, b"x")
    run(home, "forget", content)
    (tmp_path / "old").write_bytes(b"kept")
    refused(home, "get", content, "-o", str(tmp_path / "old"))
    refused(home, "get", content, "-o", str(tmp_path / "new"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"old": b"kept"}


def test_name_of_10_kb_is_refused(home: Path) -> None:
    """A name beyond the limit is refused with the limit, and nothing is published."""
    position = as_json(home, "status")["position"]
    assert "4096" in refused(home, "publish", "-", "--name", "n" * 10_000, stdin=b"x")
    assert as_json(home, "status")["position"] == position


def test_directory_is_refused(home: Path, tmp_path: Path) -> None:
    """A directory cannot be published."""
    assert "directory" in refused(home, "publish", str(tmp_path))


def test_missing_file_is_refused(home: Path, tmp_path: Path) -> None:
    """A file that is not there is refused by name."""
    assert "nothing-here" in refused(home, "publish", str(tmp_path / "nothing-here"))


def test_file_that_cannot_be_read_to_its_end_is_refused(home: Path) -> None:
    """A read error in the middle of a file is told, and nothing is published."""
    position = as_json(home, "status")["position"]
    refused(home, "publish", "/proc/self/mem")
    assert as_json(home, "status")["position"] == position


def test_file_that_shrinks_while_it_is_read_is_refused(home: Path, tmp_path: Path) -> None:
    """A file that is cut while it is being read is told as changed, and nothing is published."""
    position = as_json(home, "status")["position"]
    # The tap holds the reader in the middle of the file, so that the cut surely comes in time.
    script = (
        "import os, sys\n"
        "from walytis_vault.client import Client\n"
        "home, path = sys.argv[1:]\n"
        "from pathlib import Path\n"
        "with Client(home) as client:\n"
        "    client.publish(Path(path), progress=lambda done, total: os.truncate(path, 10))\n"
    )
    file = tmp_path / "shrinking"
    file.write_bytes(os.urandom(32 << 20))
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(home), str(file)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=STEP_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "walytis_vault.domain.errors." in done.stderr.strip().splitlines()[-1]
    assert as_json(home, "status")["position"] == position


@pytest.mark.parametrize("target", ["file/below", "missing/folder/file"])
def test_output_that_cannot_be_written_is_refused(target: str, home: Path, tmp_path: Path) -> None:
    """`get -o` into a place that cannot be is one line, and leaves nothing behind."""
    content = publish(home, b"x")
    (tmp_path / "file").touch()
    refused(home, "get", content, "-o", str(tmp_path / target))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_full_output_is_refused(home: Path) -> None:
    """When stdout cannot take the bytes, the exit code says so."""
    content = publish(home, os.urandom(1 << 20))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words_for(home, "get", content), env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE,
            timeout=STEP_SECONDS, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1, done.stderr


def test_reader_that_goes_away_ends_get_quietly(home: Path) -> None:
    """`get ID | head -c 1` ends without a message."""
    content = publish(home, os.urandom(8 << 20))
    getter = subprocess.Popen(
        words_for(home, "get", content), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert getter.stdout is not None
    assert len(getter.stdout.read(1)) == 1
    getter.stdout.close()
    getter.stdout = None
    _, complaint = getter.communicate(timeout=STEP_SECONDS)
    assert complaint == b""
    assert getter.returncode == 141


def test_second_node_on_the_same_home_is_refused(home: Path) -> None:
    """A home that is being served cannot be served again, and the first node goes on."""
    assert "already" in refused(home, "serve")
    as_json(home, "status")


def test_init_on_a_vault_is_refused(home: Path) -> None:
    """`init` never touches a home that is a vault already."""
    before = as_json(home, "status")["vault_id"]
    assert "already" in refused(home, "init")
    assert as_json(home, "status")["vault_id"] == before


def test_unknown_view_is_told(home: Path) -> None:
    """`replay` and `watch` of a view that does not exist are refused by its name."""
    assert "nonsense" in refused(home, "replay", "nonsense")
    assert "nonsense" in refused(home, "watch", "nonsense")


def test_no_node_is_told(tmp_path: Path) -> None:
    """Where no node runs, every client command says how to start one."""
    for words in (["ls"], ["status"], ["get", UNKNOWN], ["publish", "-"], ["forget", UNKNOWN], ["audit"]):
        assert "serve" in refused(tmp_path / "home", *words)
    assert not (tmp_path / "home").exists()


def test_serve_without_a_vault_is_refused(tmp_path: Path) -> None:
    """A vault is made by `init` or `join`, never by accident."""
    assert "init" in refused(tmp_path / "home", "serve")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("place", ["file/home", "file"])
def test_home_that_cannot_be_made_is_refused(place: str, tmp_path: Path) -> None:
    """A home below, or in the place of, a regular file is refused."""
    (tmp_path / "file").write_text("x")
    refused(tmp_path / place, "init")
    assert (tmp_path / "file").read_text() == "x"


def test_unwritable_home_is_refused() -> None:
    """A home on a read-only file system is refused (also for root, whom permissions do not stop)."""
    refused(Path("/proc/self/home"), "init")


def test_init_in_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    """A folder that holds something else is left alone."""
    (tmp_path / "mine").write_text("x")
    refused(tmp_path, "init")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
