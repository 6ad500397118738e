"""Several members' real nodes for tests: found one, join the others, wait for what all should see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from walytis_vault import Client, Node
from walytis_vault.node import join_vault

T = TypeVar("T")
PATIENCE_S = 20.0
JOIN_TRIES = 2


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

    def start(self) -> Member:
        """Serve."""
        self.node = Node.open(self.home)
        self._client = Client(self.home)
        self._client.__enter__()
        return self

    def stop(self) -> None:
        """End the node. Idempotent."""
        client, self._client, node, self.node = self._client, None, self.node, None
        if client is not None:
            client.__exit__(None, None, None)
        if node is not None:
            node.close()

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


def join(home: Path, inviter: Member) -> Member:
    """A new member whose node runs and is connected to the inviter's."""
    join_vault(home, inviter.client.invite(expires=600))
    member = Member(home).start()
    meet(inviter, member)
    return member


def meet(*members: Member) -> None:
    """Wait until all are connected to each other."""
    for member in members:
        others = {m.did for m in members if m is not member}
        eventually(lambda m=member, o=others: o <= set(m.client.status().peers), "all nodes are connected")  # type: ignore[misc]


def agree(*members: Member) -> None:
    """Wait until the views of all have equal hashes."""
    eventually(lambda: len({tuple(sorted(m.hashes().items())) for m in members}) == 1, "all views are equal")
