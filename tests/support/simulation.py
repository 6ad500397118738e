"""A whole vault of 3-7 nodes in one thread, from one seed: faults first, then healing (security.md 4).

While it runs, messages are lost, repeated, reordered and cut off, nodes crash, clocks are years apart, and one
member does what it likes. `run` holds what must always be true after every step, and after healing that all agree.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.liar import Liar
from support.sim_node import SimDevice, SimNode
from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.walytis.log_audit import audit_log
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.second_log import SecondLog
from walytis_vault.adapters.walytis.vault_log import found_vault
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.forgetting import Ballot
from walytis_vault.domain.ids import ContentId
from walytis_vault.reading import read_state

HEAL_ROUNDS = 40


class Simulation:
    """One seed, one history."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Found a vault, let everybody in, and connect them."""
        self.seed, self.folder = seed, folder
        chance = self.chance = random.Random(seed)
        self.network = MemoryNetwork(seed, manual=True)
        names = [f"m{n}" for n in range(chance.randrange(3, 8))]
        devices = {name: SimDevice(name, self.network.chain_id) for name in names}
        founder = devices["m0"]
        chain = self.network.replica("m0")
        founded = ev.VaultFounded(founder=founder.did, group="did:sim:group")
        self.root = found_vault(chain, founder.signer, founded, ev.KeyAnnounced(keys=founder.keys), _Epoch())
        self.nodes = {"m0": self._node(founder)}
        for name in names[1:]:
            self._admit("m0", devices[name])
        self.byzantine = chance.choice(names)
        """Whoever it is, the founder included, it may remove others: that is what the policy lets it do."""
        self.honest = [n for n in names if n != self.byzantine]
        self.contents: dict[bytes, bytes] = {}
        """What honest members published and were told so: id -> plaintext."""
        self.said_yes: set[tuple[str, bytes]] = set()
        """(honest member's DID, ballot id) for each consent and proposal that was made."""
        self.erased: dict[str, set[ContentId]] = {n: set() for n in names}
        self.outcomes: Counter[str] = Counter()
        self._settle_down()
        self.network.drop, self.network.repeat, self.network.reorder = 0.2, 0.1, True

    def _node(self, device: SimDevice) -> SimNode:
        seeded = random.Random(f"{self.seed} {device.name}")
        chain = self.network.replica(device.name)
        return SimNode(self.folder / device.name, chain, device, self.root, seeded)

    def _admit(self, by: str, device: SimDevice) -> None:
        self.nodes[device.name] = self._node(device)
        admitted = ev.MemberAdmitted(member=device.did, keys=device.keys, invitation=self.chance.randbytes(32))
        self.nodes[by].log.recorder.append([ev.to_dcb(admitted)])

    # -- the history --------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Live through `steps` steps, heal, and hold everything that was promised."""
        for _ in range(steps):
            self._step()
            self._hold_safety()
        self._heal()
        self._hold_agreement()

    def close(self) -> None:
        """Release everything."""
        for node in self.nodes.values():
            node.close()
            node.view_store.close()

    def _step(self) -> None:
        chance = self.chance
        name = chance.choice(self.honest)
        node = self.nodes[name]
        for each in self.nodes.values():
            each.clock.now += chance.random() * 2
        match chance.randrange(20):
            case 0 | 1 | 2 | 3:
                self._try(lambda: self._publish(node))
            case 4 | 5:
                self._try(lambda: self._propose(node))
            case 6 | 7 | 8:
                self._try(lambda: self._answer(node))
            case 9 | 10:
                self._try(lambda: self._fetch(node))
            case 11:
                self.network.partition(*self._groups())
            case 12:
                self.network.heal()
            case 13:
                node.crash()
            case 14 | 15:
                self._misbehave()
            case 16:
                self._try(lambda: self._retract(node))
            case 17:
                if chance.random() < 0.15:
                    self._try(lambda: self._remove(node))
            case _:
                self._exchange()
        self.network.deliver(chance.randrange(0, 12))
        for each in chance.sample(list(self.nodes.values()), 2):
            self._try(each.look)
        if chance.random() < 0.1:
            self.network.gossip()
        if chance.random() < 0.2:
            self._try(node.keeper.look)

    def _try(self, action: Callable[[], object]) -> None:
        """Do it; a refusal of ours is an outcome, any other error a defect."""
        try:
            action()
            self.outcomes["done"] += 1
        except VaultError as e:
            self.outcomes[e.code] += 1

    def _publish(self, node: SimNode) -> None:
        data = self.chance.randbytes(self.chance.randrange(1, 200))
        revises = self._any_content().hex() if self.contents and self.chance.random() < 0.2 else None
        self.contents[bytes.fromhex(node.publish(data, revises))] = data

    def _propose(self, node: SimNode) -> None:
        made = node.commands.forget((self._any_content().hex(),), "simulated")
        proposer = made.consents
        if node.device.did in proposer:
            self.said_yes.add((node.device.did, bytes.fromhex(made.ballot_id)))

    def _answer(self, node: SimNode) -> None:
        ballots = [b for b in self._ballots(node) if b.state == "open" and node.device.did in b.waiting]
        if not ballots:
            return
        ballot = self.chance.choice(ballots)
        if self.chance.random() < 0.9:
            # Said before it is sent: a crash of this harness would not undo what the others hear.
            self.said_yes.add((node.device.did, ballot.ballot_id))
            node.commands.consent(ballot.ballot_id.hex())
        elif self.chance.random() < 0.5:
            node.commands.refuse(ballot.ballot_id.hex(), "no")

    def _fetch(self, node: SimNode) -> None:
        others = [n for n in self.nodes.values() if n is not node and self._linked(node, n)]
        if others and self.contents:
            node.fetch(self._any_content(), self.chance.choice(others))

    def _retract(self, node: SimNode) -> None:
        wanted = self._any_content()
        known = node.read(wanted).state.publications.get(wanted)
        if known is not None and known.author == node.device.did:
            node.log.recorder.append([ev.to_dcb(ev.ContentRetracted(content_id=wanted))])

    def _remove(self, node: SimNode) -> None:
        victim = self.chance.choice([n for n in self.nodes if n != node.device.name])
        node.remove(self.nodes[victim].device.did)

    def _exchange(self) -> None:
        """Two nodes meet directly, as the peer door lets them."""
        a, b = self.chance.sample(list(self.nodes.values()), 2)
        if self._linked(a, b):
            self._try(lambda: a.push_to(b) if self.chance.random() < 0.5 else a.pull_from(b))

    # -- the one who does what it likes -------------------------------------------------------------------------

    def _misbehave(self) -> None:
        """Junk or lies, on the chain, or whispered to one node."""
        me = self.nodes[self.byzantine]
        self._try(me.log.reconciler.catch_up)
        honest = self.nodes[self.chance.choice(self.honest)]
        lies = Liar(self.chance, me, honest, list(self.contents)).lies(self._ballots(me))
        if not lies:
            self.network.inject(b"\x01" + self.chance.randbytes(50), to=[honest.device.name])
        for told in lies:
            if self.chance.random() < 0.5:
                self.network.inject(told.envelope(), to=[self.chance.choice(list(self.nodes))])
            else:
                victim = self.nodes[self.chance.choice(self.honest)]
                self._try(lambda v=victim, t=told: v.log.reconciler.accept([t.envelope()]))  # type: ignore[misc]

    # -- always -------------------------------------------------------------------------------------------------

    def _hold_safety(self) -> None:
        """Nothing is erased that honest members did not agree to; what was erased is nowhere on that node again."""
        for name in self.honest:
            node, before = self.nodes[name], self.erased[name]
            assert before <= node.store.tombstones, self._where("an erasure was undone", name)
            back = [c for c in node.store.tombstones if c in node.store.entries]
            assert not back, self._where("a forgotten content came back", name)
            for content in node.store.tombstones - before:
                if content in self.contents:
                    assert self._agreed(node, content), self._where(f"{content.hex()} was erased without consent", name)
            before |= node.store.tombstones

    def _agreed(self, node: SimNode, content: bytes) -> bool:
        """Whether a ballot about the content, or what it revises, has the consent of all honest that it asks."""
        reading = node.read(content)
        gone = set(node.log.membership().members) - set(node.log.membership().active())
        honest = {self.nodes[n].device.did for n in self.honest}
        return any(
            ballot.carried
            and all((d, ballot.ballot_id) in self.said_yes for d in ballot.proposal.electorate if d in honest - gone)
            and set(node.log.membership().active()) <= set(ballot.proposal.electorate)
            for ballot in reading.state.ballots.all()
        )

    # -- in the end ---------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.network.heal()
        self.network.drop = self.network.repeat = 0.0
        self._settle_down()

    def _settle_down(self) -> None:
        """Let everything arrive, until nothing changes any more."""
        still = 0
        for _ in range(HEAL_ROUNDS):
            before = [n.log.index.horizon for n in self.nodes.values()]
            self.network.deliver()
            self.network.gossip()
            for node in self.nodes.values():
                node.clock.now += 40.0
                node.log.reconciler.catch_up()
                node.keeper.look()
                self._try(node.eraser.look)
                node.views.catch_up()
            still = still + 1 if before == [n.log.index.horizon for n in self.nodes.values()] else 0
            if still == 3:
                return
        raise AssertionError(self._where("it does not come to rest", "all"))

    def _hold_agreement(self) -> None:
        """After healing all honest nodes say the same, hold what was acknowledged, and have erased what carried."""
        nodes = [self.nodes[n] for n in self.honest]
        first = nodes[0]
        active = set(first.log.membership().active())
        for node in nodes:
            name = node.device.name
            assert node.log.membership() == first.log.membership(), self._where("memberships differ", name)
            assert node.log.index.forks() == first.log.index.forks(), self._where("forks differ", name)
            with SecondLog(vault_id=node.chain.chain_id, root=self.root, verifier=HybridVerifier()) as again:
                findings = audit_log(node.log, again).findings
            assert not findings, self._where(f"the audit finds fault: {findings}", name)
            if node.device.did in active:
                assert node.hashes() == first.hashes() or first.device.did not in active, self._where(
                    "views differ", name
                )
        verdicts = [self._verdicts(n) for n in nodes]
        assert all(v == verdicts[0] for v in verdicts), self._where("verdicts differ", "all")
        known = verdicts[0]
        for node in nodes:
            if node.device.did not in active:
                continue
            for content_id, (_, forgetting) in known.items():
                if forgetting == "carried":
                    assert node.store.erased(ContentId(content_id)), self._where("not erased", node.device.name)
        for content_id in self.contents:
            for node in nodes:
                # In the log of each, void with its author's removal or not.
                found = not node.log.index.without_event([ev.content_tag(content_id)])
                assert found, self._where("an acknowledged publish is lost", node.device.name)

    def _verdicts(self, node: SimNode) -> dict[bytes, tuple[bool, str]]:
        """Content id -> whether it is hidden, and what became of it."""
        rows: list[Any] = list(node.views.query("catalogue", limit=None).rows)
        return {
            bytes.fromhex(row.content_id): (row.state == "retracted", "carried" if row.state == "forgotten" else "")
            for row in rows
        }

    # -- small things -------------------------------------------------------------------------------------------

    def _any_content(self) -> bytes:
        """Some content."""
        return self.chance.choice(list(self.contents)) if self.contents else bytes(16)

    def _ballots(self, node: SimNode) -> list[Ballot]:
        rows: list[Any] = list(node.views.query("ballots", limit=None).rows)
        wanted = [bytes.fromhex(row.ballot_id) for row in rows]
        return read_state(node.log.recorder, ballots=wanted).state.ballots.all() if wanted else []

    def _groups(self) -> list[list[str]]:
        groups: list[list[str]] = [[], []]
        for name in self.nodes:
            self.chance.choice(groups).append(name)
        return groups

    def _linked(self, a: SimNode, b: SimNode) -> bool:
        return self.network.connected(a.device.name, b.device.name)

    def _where(self, what: str, name: str) -> str:
        return f"seed {self.seed}: {what} ({name}); outcomes {dict(self.outcomes)}"


class _Epoch:
    """The clock of the founding."""

    def wall_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0
