"""The founding batch vouches for itself, under a pinned id: what it may not be all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from support.log_world import GROUP, Device, open_log
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.claims import prove_possession

Make = Callable[[str, Device, Device], SignedBatch]


def batch(
    vault_id: str, device: Device, *events: ev.Event, author: str | None = None, signer: Device | None = None
) -> SignedBatch:
    """The first batch of a device, without causes; under another name, or signed by another, if so wanted."""
    named = copy.copy(device)
    named.device = author or device.device
    return named.batch(vault_id, events, number=1, signer=signer.signer if signer else None)


def founding(device: Device, **changes: str) -> ev.VaultFounded:
    """What a founder says first."""
    return msgspec.structs.replace(ev.VaultFounded(founder=device.member, group=GROUP), **changes)


def announced(vault_id: str, device: Device, **changes: str) -> ev.KeyAnnounced:
    """What it says next; with changes that its keys agree to."""
    keys = msgspec.structs.replace(device.keys(vault_id), **changes)
    return ev.KeyAnnounced(keys=prove_possession(keys, vault_id, device.signer))


def unnamed(device: Device) -> Device:
    """The device under a name that its key is not in."""
    device.device = device.member = "did:test:anything"
    return device


FORGERIES: dict[str, tuple[Make, str]] = {
    "keys alone": (lambda v, a, _: batch(v, a, announced(v, a)), "does not begin"),
    "no keys": (lambda v, a, _: batch(v, a, founding(a)), "does not begin"),
    "keys twice": (lambda v, a, _: batch(v, a, announced(v, a), announced(v, a)), "does not begin"),
    "keys first": (lambda v, a, _: batch(v, a, announced(v, a), founding(a)), "does not begin"),
    "founded twice": (lambda v, a, _: batch(v, a, founding(a), founding(a)), "does not begin"),
    "an unknown policy": (
        lambda v, a, _: batch(v, a, founding(a, removal_policy="whoever"), announced(v, a)),
        "newer walytis-vault",
    ),
    "another's keys": (lambda v, a, b: batch(v, b, founding(a), announced(v, a)), "key that it announces"),
    "another key under the device's name": (
        lambda v, a, b: batch(v, b, founding(a), announced(v, a), author=a.device),
        "key that it announces",
    ),
    "the key under another device's name": (
        lambda v, a, b: batch(v, a, founding(a), announced(v, a), author=b.device),
        "key that it announces",
    ),
    "another founder": (lambda v, a, b: batch(v, a, founding(b), announced(v, a)), "somebody other than the founder"),
    "keys for another member": (
        lambda v, a, b: batch(v, a, founding(b), announced(v, a, member=b.member)),
        "somebody other than the founder",
    ),
    "signed by another": (
        lambda v, a, b: batch(v, a, founding(a), announced(v, a), signer=b),
        "signature does not verify",
    ),
    "a name that the key is not in": (
        lambda v, a, _: batch(v, unnamed(a), founding(a), announced(v, a)),
        "does not end with its first key",
    ),
    "keys without their owner's agreement": (
        lambda v, a, _: batch(v, a, founding(a), ev.KeyAnnounced(keys=msgspec.structs.replace(a.keys(v), proof=b""))),
        "without the signature of their owner",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_founding_that_does_not_fit_itself_is_refused(tmp_path: Path, name: str) -> None:
    """Though its id is the one that everybody was told: nothing of it enters, with the reason."""
    forge, reason = FORGERIES[name]
    network = MemoryNetwork(1, manual=True)
    chain = network.replica("a")
    made = forge(chain.chain_id, Device("a"), Device("b"))
    log = open_log(tmp_path, chain, Device("c"), made.batch_id)
    ref = network.inject(made.envelope())
    log.reconciler.catch_up()
    with log.index.database.read() as connection:
        sql = "SELECT verdict, reason FROM blocks WHERE key = ?"
        (row,) = connection.execute(sql, (ref.key,)).fetchall()
    assert row[0] in ("refused", "unreadable")
    assert reason in str(row[1])
    assert log.index.horizon == 0
    log.close()


def test_a_founding_that_fits_is_accepted(tmp_path: Path) -> None:
    """The control."""
    network = MemoryNetwork(1, manual=True)
    chain = network.replica("a")
    device = Device("a")
    made = batch(chain.chain_id, device, founding(device), announced(chain.chain_id, device))
    log = open_log(tmp_path, chain, device, made.batch_id)
    network.inject(made.envelope())
    log.reconciler.catch_up()
    assert log.index.horizon == 2
    log.close()
