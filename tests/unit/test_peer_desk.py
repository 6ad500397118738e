"""Who asks at the peer door: a CURVE key that several devices announced still belongs to the one that can use it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from support.sim_node import SimDevice, SimNode
from walytis_vault.adapters.system import SystemClock
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import found_vault
from walytis_vault.domain import events as ev
from walytis_vault.domain.claims import prove_possession
from walytis_vault.domain.errors import PermissionRefusedError
from walytis_vault.domain.ids import ContentId
from walytis_vault.peers import protocol as p


def meet(nodes: dict[str, SimNode]) -> None:
    """Let all know what any knows."""
    nodes["founder"].chain._network.gossip()
    for node in nodes.values():
        node.look()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, SimNode]]:
    """A founder; a thief, one of whose devices claims the victim's key; and the victim, who comes later."""
    network = MemoryNetwork(7, manual=True)
    chain = network.replica("founder")
    founder, thief, victim, second = (SimDevice(n, chain.chain_id) for n in ("founder", "thief", "victim", "second"))
    founded = ev.VaultFounded(founder=founder.did, group="did:sim:group")
    root = found_vault(chain, founder.signer, founded, ev.KeyAnnounced(keys=founder.keys), SystemClock())
    made = {
        device.name: SimNode(tmp_path / device.name, network.replica(device.name), device, root, random.Random(1))
        for device in (founder, thief, victim)
    }

    def told(author: str, event: ev.Event) -> None:
        made[author].log.recorder.append([ev.to_dcb(event)])
        meet(made)

    meet(made)
    told("founder", ev.MemberAdmitted(member=thief.did, keys=thief.keys, invitation=b"t" * 32))
    stolen = msgspec.structs.replace(second.keys, member=thief.did, bus=victim.keys.bus)
    told("thief", ev.KeyAnnounced(keys=prove_possession(stolen, chain.chain_id, second.signer)))
    told("founder", ev.MemberAdmitted(member=victim.did, keys=victim.keys, invitation=b"v" * 32))
    yield made
    for node in made.values():
        node.close()
        node.view_store.close()


def test_who_claims_anothers_key_takes_nothing_from_its_owner(nodes: dict[str, SimNode]) -> None:
    """The owner of a key gets contents and their keys, though a device that came first claims its key."""
    founder, victim = nodes["founder"], nodes["victim"]
    claimed = founder.desk._network.devices_of(victim.device.keys.bus)
    assert [keys.member for keys in claimed] == [nodes["thief"].device.did, victim.device.did]
    content_id = bytes.fromhex(founder.publish(b"for all of us"))
    meet(nodes)
    assert victim.fetch(content_id, founder)


def test_a_claimed_key_stands_and_falls_with_its_owner(nodes: dict[str, SimNode]) -> None:
    """The owner's key outlives the removal of who claimed it, and not the owner's own."""
    founder, victim, thief = nodes["founder"], nodes["victim"], nodes["thief"]
    content_id = bytes.fromhex(founder.publish(b"for all of us"))
    founder.remove(thief.device.did)
    meet(nodes)
    part = p.Leaves(content_id=content_id, start=0)
    founder.desk.answer(victim.device.keys.bus, part, ())
    founder.desk.segment(victim.device.keys.bus, ContentId(content_id), 0)
    founder.remove(victim.device.did)
    with pytest.raises(PermissionRefusedError):
        founder.desk.answer(victim.device.keys.bus, part, ())


def test_blocks_are_for_members_only(nodes: dict[str, SimNode]) -> None:
    """A member's device gets the files of blocks that are here; one that was removed, like a stranger, gets none."""
    founder, victim = nodes["founder"], nodes["victim"]
    founder.desk._block_file = {"QmBlock0": b"file"}.get
    ask = p.Blocks(cids=("QmBlock0", "QmOther0"))
    assert founder.desk.answer(victim.device.keys.bus, ask, ()) == (p.Done(number=1), [b"file"])
    founder.remove(victim.device.did)
    meet(nodes)
    founder.remove(nodes["thief"].device.did)
    meet(nodes)
    for key in (victim.device.keys.bus, bytes(32)):
        with pytest.raises(PermissionRefusedError):
            founder.desk.answer(key, ask, ())
