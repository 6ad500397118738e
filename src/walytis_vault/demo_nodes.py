"""The whole story with several members: `walytis-vault demo --nodes N`.

One real node for each member, in processes of their own that talk only through libp2p and the bus: found, invite,
join, publish on each, fetch everywhere, propose, consent, receipts, audit, equal views. Each step is checked, and the
first that fails ends it with exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from walytis_vault.demo import STEP_SECONDS, Program, StepFailedError, Story, tell
from walytis_vault.domain.errors import MisuseError

NAMES: Final = ("ada", "bob", "cyd", "dan", "eve", "fay", "gus")
T = TypeVar("T")
PATIENCE_S: Final = 60.0
JOIN_TRIES: Final = 2


def run(nodes: int, *, as_json: bool = False) -> int:
    """Run the demo and return its exit code.

    Args:
        nodes: how many members, 2 to 7.
        as_json: tell the story on stderr, and one JSON document on stdout.
    Raises:
        MisuseError: another number of nodes.
    """
    if not 2 <= nodes <= len(NAMES):
        raise MisuseError(f"the demo runs 2 to {len(NAMES)} nodes, not {nodes}")

    def play(folder: Path, story: Story, outcome: dict[str, Any]) -> None:
        with contextlib.ExitStack() as running:
            _play([Program(folder / name, story, name) for name in NAMES[:nodes]], story, folder, running, outcome)

    return tell(play, {"ok": False, "nodes": nodes}, as_json=as_json)


def _play(
    members: list[Program], story: Story, folder: Path, running: contextlib.ExitStack, outcome: dict[str, Any]
) -> None:
    founder = members[0]
    _who(founder, "founds a vault")
    story.show(founder.run("init", "--name", "demo").stdout)
    running.enter_context(founder.serving())
    for newcomer in members[1:]:
        _who(newcomer, f"joins with a code that {founder.name} made")
        code = founder.run("invite", "--expires", "10m").stdout.strip()
        story.show(_join(newcomer, code))
        running.enter_context(newcomer.serving())
    for member in members:
        _until(lambda m=member: len(_json(m, "status")["peers"]) == len(members) - 1, "all nodes are connected")  # type: ignore[misc]
    story.tell("all nodes are connected to each other")
    story.show(founder.run("members").stdout)
    ids = [_publish(member, folder) for member in members]
    for member in members:
        _who(member, "gets what everybody published")
        for content_id, publisher in zip(ids, members, strict=True):
            _until(lambda m=member, c=content_id: c in _states(m), "the content is in the catalogue")  # type: ignore[misc]
            copy = folder / "copy"
            member.run("get", content_id, "-o", str(copy))
            if copy.read_bytes() != _letter(publisher):
                raise StepFailedError(f"{content_id} came with other bytes")
            copy.unlink()
        story.tell(f"{len(ids)} letters, each of them byte for byte what its author published")
    _until(lambda: all(len(row["held_by"]) == len(ids) - 1 for row in _json(founder, "holders")), "everybody holds all")
    story.show(founder.run("holders").stdout)
    _forget_together(members, ids[0])
    for member in members:
        _who(member, "verifies the whole record and all stored bytes")
        said = member.run("audit", "--read-data").stdout.splitlines()
        story.show("\n".join(said if member is founder else said[-1:]))
    hashes = _until(lambda: _equal_hashes(members), "all views are equal on all nodes")
    story.tell("the views are equal on all nodes:")
    story.show("\n".join(f"{name} {value[:32]}" for name, value in hashes.items()))
    outcome.update(published=ids, forgotten=ids[0], views=hashes)


def _join(newcomer: Program, code: str) -> str:
    """Join; the command is made to be repeated when something on the way did not answer in time."""
    for _ in range(JOIN_TRIES):
        newcomer.tell("join", "-", "--name", "demo")
        with subprocess.Popen(
            newcomer.command("join", "-", "--name", "demo"), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as joining:  # fmt: skip
            assert joining.stdin is not None
            assert joining.stdout is not None
            assert joining.stderr is not None
            joining.stdin.write(code)
            joining.stdin.close()
            # It takes a while, and says what it does meanwhile.
            threading.Thread(target=_show_lines, args=(joining.stderr, newcomer.story), daemon=True).start()
            try:
                if joining.wait(STEP_SECONDS) == 0:
                    return joining.stdout.read()
            finally:
                joining.kill()
    raise StepFailedError("a newcomer could not join")


def _show_lines(lines: TextIO, story: Story) -> None:
    for line in lines:
        story.show(line)


def _publish(member: Program, folder: Path) -> str:
    _who(member, "publishes a letter")
    letter = folder / f"letter from {member.name}.txt"
    letter.write_bytes(_letter(member))
    said = member.run("publish", str(letter)).stdout
    member.story.show(said)
    return said.split("\n", 1)[0]


def _letter(member: Program) -> bytes:
    return f"Greetings to everybody from {member.name}.\n".encode() * 200


def _forget_together(members: list[Program], content_id: str) -> None:
    proposer, *others = members
    _who(proposer, "proposes to forget its letter")
    ballot_id = proposer.run("forget", content_id, "--reason", "the demo shows forgetting").stdout.split()[0]
    for member in others:
        _until(lambda m=member: ballot_id in _ballots(m), "the ballot is known")  # type: ignore[misc]
        _who(member, "consents")
        member.story.show(member.run("consent", ballot_id).stdout)
    for member in members:
        _until(lambda m=member: len(_ballots(m)[ballot_id]["receipts"]) == len(members), "all receipts are there")  # type: ignore[misc]
    proposer.story.tell("every node has destroyed key and bytes, and signed that it has")
    proposer.story.show(proposer.run("ballots").stdout)
    for member in members:
        refused = member.run("get", content_id, expect=1)
        if _states(member)[content_id] != "forgotten":
            raise StepFailedError("the catalogue does not show the content as forgotten")
        member.story.show(refused.stderr)


def _who(member: Program, what: str) -> None:
    member.story.tell(f"-- {member.name} {what}")


def _json(member: Program, *words: str) -> Any:
    """Ask without telling: the story would be full of looks."""
    done = subprocess.run(
        member.command(*words, "--json"), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise StepFailedError(f"`{words[0]}` said: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _states(member: Program) -> dict[str, str]:
    return {row["content_id"]: row["state"] for row in _json(member, "ls")}


def _ballots(member: Program) -> dict[str, Any]:
    return {row["ballot_id"]: row for row in _json(member, "ballots")}


def _equal_hashes(members: list[Program]) -> dict[str, str] | None:
    found = [{name: view["hash"] for name, view in _json(m, "status")["views"].items()} for m in members]
    return found[0] if all(f == found[0] for f in found) else None


def _until(look: Callable[[], T | None], what: str) -> T:
    """The first true answer of `look`; bounded."""
    pause, until = threading.Event(), time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > until:
            raise StepFailedError(f"it did not come to pass within {PATIENCE_S:.0f} s: {what}")
        pause.wait(0.2)
    return found
