"""Several members' real nodes for tests: found one, join the others, wait for what all should see."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from walytis_vault import Client, Node, TransportError, node
from walytis_vault.node import join_vault

T = TypeVar("T")
PATIENCE_S = 60.0
JOIN_TRIES = 3


def eventually(look: Callable[[], T], what: str, patience: float = PATIENCE_S) -> T:
    """The first true answer of `look`; bounded."""
    pause, until = threading.Event(), time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < until, f"it did not come to pass: {what}"
        pause.wait(0.05)
    return found


class Member:
    """One member: its home, and its node while it runs."""

    def __init__(self, home: Path) -> None:
        """Bind to a home that holds a vault."""
        self.home = home
        self.node: Node | None = None
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """A client of the running node."""
        assert self._client is not None
        return self._client

    @property
    def did(self) -> str:
        """The member's DID."""
        return self.client.status().did

    @property
    def device(self) -> str:
        """The device's DID."""
        return self.client.status().device

    def start(self, **options: Any) -> Member:
        """Serve. Takes the options of `Node.open`."""
        self.node = Node.open(self.home, **options)
        self._client = Client(self.home)
        self._client.__enter__()
        return self

    def start_as(self, module: str, **environment: str) -> Member:
        """Serve by another program than the usual one: a test's own, with these variables in its environment."""
        tests = str(Path(__file__).parents[1])
        with pytest.MonkeyPatch.context() as other:
            other.syspath_prepend(tests)
            other.setattr(node, "CHILD_MODULE", module)
            for name, value in environment.items():
                other.setenv(name, value)
            return self.start()

    def stop(self) -> None:
        """End the node. Idempotent."""
        client, self._client, node, self.node = self._client, None, self.node, None
        if client is not None:
            client.__exit__(None, None, None)
        if node is not None:
            node.close()

    def kill(self) -> None:
        """End the node as a power cut would."""
        client, self._client, node, self.node = self._client, None, self.node, None
        assert node is not None
        node.kill()
        if client is not None:
            client.__exit__(None, None, None)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the node's process without ending it, as if its network were cut, for as long as the block runs."""
        assert self.node is not None
        os.kill(self.node.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.node.pid, signal.SIGCONT)

    def state(self, content_id: str) -> str | None:
        """The state of a content in the catalogue, None when it is not there."""
        row = self.row(content_id)
        return None if row is None else str(row.state)

    def row(self, content_id: str) -> Any:
        """The catalogue's row of a content, None while there is none."""
        return next((r for r in self.client.query("catalogue", limit=None) if r.content_id == content_id), None)

    def ballot(self, ballot_id: str) -> Any:
        """A ballot's row, None while there is none."""
        return next((r for r in self.client.query("ballots", limit=None) if r.ballot_id == ballot_id), None)

    def hashes(self) -> dict[str, str]:
        """View -> hash."""
        return {name: view.hash for name, view in self.client.status().views.items()}


def found(home: Path) -> Member:
    """A founder whose node runs."""
    with Node.create(home):
        pass
    return Member(home).start()


def join(home: Path, inviter: Member, *, device: bool = False) -> Member:
    """A new member, or another device of the inviter's, whose node runs and is connected to the inviter's."""
    code = inviter.client.invite(expires=600, device=device)
    for left in reversed(range(JOIN_TRIES)):
        try:
            join_vault(home, code)
            break
        except TransportError:  # the identity library's own patience is short when the machine is busy
            if not left:
                raise
    member = Member(home).start()
    meet(inviter, member)
    return member


def found_and_join(folder: Path, *names: str) -> list[Member]:
    """A vault of as many members as names, whose nodes run and are connected."""
    members = [found(folder / names[0])]
    try:
        for name in names[1:]:
            members.append(join(folder / name, members[0]))
        meet(*members)
    except BaseException:
        stop_all(members)
        raise
    return members


def stop_all(members: list[Member]) -> None:
    """End all nodes."""
    for member in members:
        member.stop()


def meet(*members: Member) -> None:
    """Wait until all are connected to each other."""
    for member in members:
        others = {m.device for m in members if m is not member}
        eventually(lambda m=member, o=others: o <= set(m.client.status().peers), "all nodes are connected")  # type: ignore[misc]


def agree(*members: Member) -> None:
    """Wait until the views of all have equal hashes."""
    eventually(lambda: len({tuple(sorted(m.hashes().items())) for m in members}) == 1, "all views are equal")
