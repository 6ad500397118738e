"""A member that does what it likes with its keys: its node is a child process that obeys the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from support import hostile_actions
from support.peer_nodes import Member
from support.walytis_child import WalytisChild
from walytis_vault.domain.events import Event, to_dcb
from walytis_vault.peers import protocol as p
from walytis_vault.peers.invitations import read_code


def address_of(member: Member) -> str:
    """Where a member's node is, with its peer id: as its invitations say."""
    code = read_code(member.client.invite(expires=60))
    return f"{code.addresses[0]}/p2p/{code.peer_id}"


Made = tuple[bytes, bytes]
"""Batch id, envelope."""


class HostileMember:
    """Runs in the place of the member's honest node, which must be stopped; its home must be named `vault`."""

    def __init__(self, home: Path, *others: Member) -> None:
        """Start a real Walytis node on the member's home, connected to the nodes of these others."""
        self._home = str(home)
        peers = tuple(address_of(member) for member in others)
        self.child = WalytisChild(home.parent, peers=peers)
        for address in peers:
            self.child.call("connect", address=address)
        who = self.run("announced")
        self.did, self.vault_id = str(who["member"]), str(who["vault_id"])

    def run(self, function: str, **arguments: Any) -> Any:
        """Have the child do one of `hostile_actions`."""
        arguments = {"home": self._home, **arguments}
        return self.child.call("run", module=hostile_actions.__name__, function=function, arguments=arguments)

    def batch(self, *events: Event, number: int | None = None, previous: bytes | None = None, **other: Any) -> Made:
        """A batch that follows this device's last one, unless the test wants something else."""
        own, last, heads = self.run("position")
        packed = [(e.TOPIC, to_dcb(e).data) for e in events]
        made = self.run(
            "batch",
            events=packed,
            number=own + 1 if number is None else number,
            previous=last if previous is None else previous,
            heads=other.pop("heads", heads),
            **other,
        )
        return bytes(made[0]), bytes(made[1])

    def to_chain(self, envelope: bytes) -> None:
        """Put bytes into a block."""
        self.run("to_chain", envelope=envelope)

    def push(self, to: Member, *envelopes: bytes) -> None:
        """Send batches straight to one member's node."""
        kind, reply, _ = self.ask(to, p.Push(), *envelopes)
        assert kind == "answer", reply

    def ask(self, whom: Member, request: p.Request, *payload: bytes, stranger: bool = False) -> tuple[str, Any, Any]:
        """Ask a member's door. Returns "answer" and the reply as builtin types, or an error's code and words."""
        kind, reply, parts = self.run(
            "ask",
            device=whom.did,
            request=msgspec.msgpack.encode(request),
            payload=list(payload),
            stranger=stranger,
        )
        return kind, (msgspec.msgpack.decode(reply) if kind == "answer" else bytes(reply).decode()), parts

    def end(self) -> None:
        """End the child. Idempotent."""
        self.child.kill()
