"""The command line on a real node: what a person types, and what comes of it.

One vault of one member, founded and served once for this module by the command line itself.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from support.command_line import (
    ENVIRONMENT,
    STEP_SECONDS,
    STOP_SECONDS,
    as_json,
    publish,
    refused,
    run,
    run_process,
    words_for,
)


def test_publish_prints_the_id_alone_on_its_first_line(home: Path, tmp_path: Path) -> None:
    """`publish FILE` prints 32 hex digits; `get` writes the same bytes to stdout."""
    data = os.urandom(70_000)
    file = tmp_path / "some file.bin"
    file.write_bytes(data)
    first = run_process(home, "publish", str(file)).stdout.decode().split("\n")[0]
    assert len(first) == 32
    assert bytes.fromhex(first)
    assert run_process(home, "get", first).stdout == data


def test_several_files_and_folders_are_published_in_order(home: Path, tmp_path: Path) -> None:
    """`publish -r` prints id and file for each, in order; in the vault they are named from the folder on."""
    folder = tmp_path / "trip"
    (folder / "day 1").mkdir(parents=True)
    for number in range(12):
        (folder / "day 1" / f"{number:02}.txt").write_bytes(b"%d" % number)
    (folder / "empty").write_bytes(b"")
    (folder / "link").symlink_to("/etc/passwd")
    single = tmp_path / "single.bin"
    single.write_bytes(os.urandom(2 << 20))
    done = run(home, "publish", "-r", str(folder), str(single), "--label", "trip")
    lines = [line.split("  ", 1) for line in done.stdout.decode().splitlines()]
    expected = [*(f"trip/day 1/{number:02}.txt" for number in range(12)), "trip/empty", "single.bin"]
    assert [Path(file).name for _, file in lines] == [Path(name).name for name in expected]
    for content, file in lines:
        assert run(home, "get", content).stdout == Path(file).read_bytes()
    rows = {row["content_id"]: row for row in as_json(home, "ls", "--label", "trip", "--limit", "100")}
    assert [rows[content]["name"] for content, _ in lines] == expected
    assert rows[lines[0][0]]["media_type"] == "text/plain"
    documents = run(home, "publish", "--json", str(single), str(folder / "empty")).stdout.splitlines()
    assert [json.loads(line)["file"] for line in documents] == [str(single), str(folder / "empty")]


def test_several_files_of_which_one_cannot_be_read(home: Path, tmp_path: Path) -> None:
    """What does not exist is told before anything is published; what fails later leaves the others' ids on stdout."""
    first, last = tmp_path / "first", tmp_path / "last"
    first.write_bytes(b"1")
    last.write_bytes(b"2")
    before = as_json(home, "status")["position"]
    for wrong in (["publish", str(first), str(tmp_path / "none")], ["publish", str(first), str(tmp_path)]):
        refused(home, *wrong)
    assert as_json(home, "status")["position"] == before
    run(home, "publish", "--name", "x", str(first), str(last), expect=2)
    run(home, "publish", "-", str(last), expect=2)
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/bro\xffken")  # no text: it cannot be the name of a content
    Path(broken).touch()
    done = run(home, "publish", str(first), broken, str(last), expect=1)
    lines = done.stdout.decode().splitlines()
    assert lines
    assert lines[0].endswith(str(first))
    assert as_json(home, "status")["position"] == before + len(lines)


def test_published_with_json_is_one_document(home: Path) -> None:
    """`publish --json` prints content id and position, wherever the option stands."""
    for words in (["--json", "publish", "-"], ["publish", "-", "--json"]):
        done = run(home, *words, stdin=b"x")
        receipt = json.loads(done.stdout)
        assert set(receipt) >= {"content_id", "position"}
        assert done.stdout.count(b"\n") == 1


def test_get_writes_a_file(home: Path, tmp_path: Path) -> None:
    """`get -o FILE` writes the file and nothing to stdout."""
    content = publish(home, b"to a file")
    done = run(home, "get", content, "-o", str(tmp_path / "out"))
    assert done.stdout == b""
    assert (tmp_path / "out").read_bytes() == b"to a file"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_ls_lists_what_was_said_about_a_content(home: Path) -> None:
    """`ls --json` rows have state, author, time, size, name, media type and labels."""
    content = publish(home, b"12345", "--name", "five.txt", "--type", "text/plain", "--label", "a", "--label", "b")
    (row,) = [r for r in as_json(home, "ls") if r["content_id"] == content]
    assert (row["state"], row["size"], row["name"], row["media_type"]) == ("available", 5, "five.txt", "text/plain")
    assert sorted(row["labels"]) == ["a", "b"]
    assert row["author"] == as_json(home, "status")["did"]
    assert row["time"].startswith("20")
    table = run(home, "ls").stdout.decode()
    assert "five.txt" in table
    assert content in table


def test_ls_filters(home: Path) -> None:
    """`ls` with a label shows what bears it, and nothing else."""
    content = publish(home, b"x", "--label", "only-here")
    publish(home, b"y")
    assert [r["content_id"] for r in as_json(home, "ls", "--label", "only-here")] == [content]
    assert as_json(home, "ls", "--label", "nowhere") == []


def test_status_tells_vault_and_views(home: Path) -> None:
    """`status --json` has vault, member, position, peers, and position and hash of each view."""
    publish(home, b"x")
    status = as_json(home, "status")
    assert set(status) >= {"vault_id", "did", "position", "peers", "views"}
    assert status["peers"] == []
    assert {"catalogue", "ballots"} <= set(status["views"])
    for view in status["views"].values():
        assert view["position"] == status["position"]
        assert view["hash"]
    said = run(home, "status").stdout.decode()
    assert status["vault_id"] in said
    assert "None" not in said, "what was not measured yet is told in words"


def test_forgotten_is_refused_and_its_record_remains(home: Path) -> None:
    """In a vault of one, `forget` carries at once; `get` then says so; the row stays, without its name."""
    content = publish(home, b"to be forgotten", "--name", "secret plan")
    ballot = as_json(home, "forget", content, "--reason", "test")
    assert ballot["state"] == "carried"
    assert "forgotten" in refused(home, "get", content)
    (row,) = [r for r in as_json(home, "ls") if r["content_id"] == content]
    assert row["state"] == "forgotten"
    assert not row["name"]
    (listed,) = [b for b in as_json(home, "ballots") if b["ballot_id"] == ballot["ballot_id"]]
    assert listed["contents"] == [content]
    assert len(listed["consents"]) == len(listed["electorate"]) == 1
    assert len(listed["receipts"]) == 1
    log = run(home, "log").stdout.decode()
    assert "content published" in log
    assert "content erased" in log
    assert log.count(content) >= 2
    assert "secret plan" not in log
    assert "secret plan" not in run(home, "ls").stdout.decode()


def test_log_is_one_document_per_event(home: Path) -> None:
    """`log --json` prints one document per line, with positions that rise by one."""
    publish(home, b"x")
    lines = run(home, "log", "--json").stdout.splitlines()
    positions = [json.loads(line)["position"] for line in lines]
    assert positions == list(range(1, len(positions) + 1))
    assert positions[-1] == as_json(home, "status")["position"]
    later = run(home, "log", "--json", "--after", str(positions[-2])).stdout.splitlines()
    assert [json.loads(line)["position"] for line in later] == positions[-1:]


def test_watch_follows(home: Path) -> None:
    """`watch` prints what is published after it began, and ends with exit code 130 at Ctrl-C."""
    start = as_json(home, "status")["position"]
    follower = subprocess.Popen(
        words_for(home, "watch", "--json", "--after", str(start)),
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        content = publish(home, b"news")
        assert follower.stdout is not None
        assert select.select([follower.stdout], [], [], STEP_SECONDS)[0]
        change = json.loads(follower.stdout.readline())
        assert change["position"] == start + 1
        assert content in change["ids"]
        follower.send_signal(signal.SIGINT)
        _, complaint = follower.communicate(timeout=STOP_SECONDS)
        assert follower.returncode == 130
        assert b"Traceback" not in complaint
    finally:
        follower.kill()
        follower.wait()


def test_replay_and_audit_find_everything_in_order(home: Path) -> None:
    """`replay` builds the same views again; `audit --read-data` finds nothing wrong."""
    publish(home, b"x")
    before = as_json(home, "status")["views"]
    run(home, "replay")
    run(home, "replay", "catalogue")
    assert as_json(home, "status")["views"] == before
    assert json.loads(run(home, "audit", "--read-data", "--json").stdout)
    run(home, "audit")


def test_views_can_be_shown_as_they_were_at_a_time(home: Path) -> None:
    """`replay --until TIME` has what was published up to that moment, the moment itself included; `ls --until` not."""
    first, second = publish(home, b"early"), publish(home, b"later")
    times = {row["content_id"]: row["time"] for row in as_json(home, "ls")}
    then = max(times[first], times[second])
    before = (dt.datetime.fromisoformat(times[second]) - dt.timedelta(milliseconds=1)).isoformat()
    assert times[first] < times[second]
    past = {row["content_id"] for row in as_json(home, "replay", "catalogue", "--until", before)["catalogue"]}
    assert first in past
    assert second not in past
    past = {row["content_id"] for row in as_json(home, "replay", "catalogue", "--until", then)["catalogue"]}
    assert {first, second} <= past
    listed = {row["content_id"] for row in as_json(home, "ls", "--until", then)}
    assert first in listed
    assert second not in listed
    shown = run(home, "replay", "--until", "1h").stdout.decode()
    assert "catalogue, as of" in shown
    assert first not in shown
    assert first in {row["content_id"] for row in as_json(home, "ls")}


def test_retracted_is_hidden_and_comes_back(home: Path) -> None:
    """`retract` hides a content; `restore` shows it again, with the same bytes."""
    content = publish(home, b"hide and seek")
    run(home, "retract", content)
    assert content not in [r["content_id"] for r in as_json(home, "ls")]
    assert [r["state"] for r in as_json(home, "ls", "--state", "retracted") if r["content_id"] == content]
    run(home, "restore", content)
    assert run(home, "get", content).stdout == b"hide and seek"


def test_revision_names_its_original(home: Path) -> None:
    """`revise` publishes a new content that names the original and is labelled like it; both stay readable."""
    made = run(home, "publish", "-", "--name", "draft.txt", "--type", "text/plain", "--label", "mine", stdin=b"first")
    content = made.stdout.decode().split("\n")[0]
    second = run(home, "revise", content, "-", stdin=b"second").stdout.decode().split("\n")[0]
    (row,) = [r for r in as_json(home, "ls") if r["content_id"] == second]
    assert row["revises"] == content
    assert (row["name"], row["media_type"], row["labels"]) == ("draft.txt", "text/plain", ["mine"])
    assert (run(home, "get", content).stdout, run(home, "get", second).stdout) == (b"first", b"second")


def test_empty_file_comes_back_empty(home: Path, tmp_path: Path) -> None:
    """An empty file is a content like any other."""
    (tmp_path / "empty").touch()
    content = run(home, "publish", str(tmp_path / "empty")).stdout.decode().split("\n")[0]
    assert run(home, "get", content).stdout == b""
    run(home, "get", content, "-o", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b""


@pytest.mark.parametrize("name", ["ünïcödé 日本.txt", "with\nnewline", "\x1b[31mred", "-rf", "a" * 255])
def test_strange_names_survive_and_do_no_harm(name: str, home: Path) -> None:
    """Any name comes back as it was in JSON, and prints as harmless text on its own line."""
    content = publish(home, b"x", f"--name={name}")
    (row,) = [r for r in as_json(home, "ls") if r["content_id"] == content]
    assert row["name"] == name
    printed = [line for line in run(home, "ls").stdout.decode().split("\n") if content in line]
    assert len(printed) == 1
    assert "\x1b" not in printed[0]


def test_keys_of_programs_have_their_verbs_and_can_be_taken_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`client add` makes a key that may do what was said; after `client revoke` it opens nothing."""
    content = publish(home, b"for the reader")
    key = Path(run(home, "client", "add", "reader").stdout.decode().strip())
    assert key.stat().st_mode & 0o777 == 0o600
    assert ("reader", ["read"]) in [(c["name"], c["verbs"]) for c in as_json(home, "client", "list")]
    monkeypatch.setenv("WALYTIS_VAULT_KEY", str(key))
    assert run(home, "get", content).stdout == b"for the reader"
    for words in (["publish", "-"], ["forget", content], ["audit"]):
        refused(home, *words)
    saved = key.read_bytes()
    run(home, "client", "revoke", "reader")
    kept = key.with_name("kept.key")
    kept.touch(mode=0o600)
    kept.write_bytes(saved)
    monkeypatch.setenv("WALYTIS_VAULT_KEY", str(kept))
    refused(home, "get", content, "--timeout", "5")
    monkeypatch.delenv("WALYTIS_VAULT_KEY")
    assert "reader" not in run(home, "client", "list").stdout.decode()
    assert "reader" in refused(home, "client", "revoke", "reader")


def test_expiry_is_taken(home: Path) -> None:
    """`--expires` ends up in the catalogue."""
    content = publish(home, b"x", "--expires", "2130-01-31T12:00:00Z")
    (row,) = [r for r in as_json(home, "ls") if r["content_id"] == content]
    assert row["expires"].startswith("2130-01-31T12:00:00")
