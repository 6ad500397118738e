"""The audit of what is stored: lost bytes and lost keys are named, counted, and repaired where that is possible."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.content_stores import open_store
from support.log_world import Device, founded, open_log
from walytis_vault import audit
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.slots import HEADER_BYTES, SLOT_BYTES
from walytis_vault.adapters.system import SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.audit import BYTES_DIFFER, BYTES_LOST, KEY_LOST, audit_vault
from walytis_vault.audit_pages import AuditPages
from walytis_vault.bus.messages import InlinePublish, Published, PublishOptions
from walytis_vault.domain.errors import NotYetAvailableError, VaultError
from walytis_vault.domain.ids import ContentId, ContentKey, Root
from walytis_vault.publishing_together import publish_together
from walytis_vault.repair import Repairer

LARGE, SMALL = 200_000, 900


class Vault:
    """A vault of one on disk, with contents that are described on its log."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.owner = folder, Device("a")
        chain = MemoryNetwork().replica("a")
        self.log: VaultLog = open_log(folder, chain, self.owner, founded(chain, self.owner))
        self.log.start()
        self.store = open_store(folder)

    def publish(self, *sizes: int) -> list[ContentId]:
        """Publish random contents of these sizes."""
        wanted = [InlinePublish(data=os.urandom(n), options=PublishOptions(), key=None) for n in sizes]
        made = publish_together(
            self.log,
            self.store,
            wanted,
            vault_id=self.log.chain.chain_id,
            author=self.owner.member,
            clock=SystemClock(),
            randomness=SystemRandomness(),
        )
        return [ContentId(bytes.fromhex(p.content_id)) for p in made if isinstance(p, Published)]

    def restart(self) -> None:
        """Close the store and open it again."""
        self.store.close()
        self.store = open_store(self.folder)

    def audit(self, repairer: Repairer | None = None, *, device: str | None = None) -> dict[str, Any]:
        """Read everything."""
        repair = None if repairer is None else repairer.repair
        return audit_vault(
            self.log, self.store, AuditPages(), device=device or self.owner.device, read_data=True, repair=repair
        )

    def problems(self) -> dict[str, str]:
        """Content id -> what the audit says of it."""
        report = self.audit()
        assert report["ok"] == (not report["damaged"])
        assert report["damaged_total"] == len(report["damaged"])
        return {entry["content_id"]: entry["problem"] for entry in report["damaged"]}

    def blob(self, content_id: ContentId) -> Path:
        """Where a large content lies."""
        return self.folder / "content" / "blobs" / f"{content_id.hex()}.blob"

    def flip_slot(self, content_id: ContentId) -> None:
        """Flip one bit in the slot of a content's key."""
        row = self.store._state.index.get(content_id)
        assert row is not None
        assert row.slot is not None
        with (self.folder / "content" / "keys.slots").open("r+b") as file:
            at = HEADER_BYTES + row.slot * SLOT_BYTES + 40
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    def close(self) -> None:
        """Close both."""
        self.log.close()
        self.store.close()


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A vault of one."""
    made = Vault(tmp_path)
    yield made
    made.close()


def test_a_sound_vault_has_no_damage(vault: Vault) -> None:
    """Contents that are whole, dropped or erased are no problem."""
    whole, large, dropped, erased = vault.publish(SMALL, LARGE, SMALL, LARGE)
    vault.store.drop_bytes(dropped)
    assert vault.problems() == {}
    assert vault.store.is_available(whole)
    assert vault.store.is_available(large)
    assert not vault.store.is_available(dropped)
    vault.store.erase((erased,))
    assert vault.problems() == {}
    assert vault.store.lost() == 0


def test_a_blob_that_vanished_is_told(vault: Vault) -> None:
    """Bytes that are gone are named before and after a restart, counted, and the content is not available."""
    lost, other = vault.publish(LARGE, LARGE)
    vault.blob(lost).unlink()
    assert vault.problems() == {lost.hex(): BYTES_DIFFER}
    vault.restart()
    assert vault.problems() == {lost.hex(): BYTES_LOST}
    assert vault.store.lost() == 1
    assert not vault.store.is_available(lost)
    assert vault.store.is_available(other)
    vault.restart()
    assert vault.problems() == {lost.hex(): BYTES_LOST}
    vault.store.erase((lost,))
    assert vault.store.lost() == 0


def test_a_key_that_does_not_open_is_told(vault: Vault) -> None:
    """One bit of a slot: the audit names it, the content is not available from then on, also after a restart."""
    lost, other = vault.publish(SMALL, SMALL)
    vault.flip_slot(lost)
    assert vault.problems() == {lost.hex(): KEY_LOST}
    for _ in range(2):
        assert not vault.store.is_available(lost)
        assert vault.store.has_bytes(lost)
        assert vault.store.is_available(other)
        assert vault.store.lost() == 1
        vault.restart()
    vault.flip_slot(lost)
    assert vault.problems() == {}, "a disk that read wrongly and reads right again has lost nothing"
    assert vault.store.is_available(lost)
    assert vault.store.lost() == 0


def test_a_key_that_is_not_the_committed_one_is_told(vault: Vault) -> None:
    """A slot that opens to a key which the chain does not commit to is as good as lost."""
    (lost,) = vault.publish(SMALL)
    row = vault.store._state.index.get(lost)
    assert row is not None
    assert row.slot is not None
    vault.store._state.slots.write([(row.slot, lost, ContentKey(os.urandom(32)))])
    assert vault.problems() == {lost.hex(): KEY_LOST}
    assert vault.store.content_key(lost) is None


def test_a_cut_slot_file_is_told(vault: Vault) -> None:
    """Keys that went with the end of the slot file are named and counted."""
    ids = vault.publish(SMALL, SMALL, SMALL)
    vault.store.close()
    path = vault.folder / "content" / "keys.slots"
    path.write_bytes(path.read_bytes()[: HEADER_BYTES + SLOT_BYTES])
    vault.store = open_store(vault.folder)
    assert vault.store.lost() == 2
    told = vault.problems()
    assert set(told.values()) == {KEY_LOST}
    assert len(told) == 2
    assert sum(vault.store.is_available(i) for i in ids) == 1


def test_what_others_published_need_not_be_here(vault: Vault) -> None:
    """Only what this device published, or once had, is missed."""
    once_here, never = vault.publish(LARGE, SMALL)
    vault.blob(once_here).unlink()
    vault.store._state.index.delete_rows([never])
    vault.restart()
    report = vault.audit(device="did:test:another")
    assert [entry["content_id"] for entry in report["damaged"]] == [once_here.hex()]
    assert vault.problems() == {once_here.hex(): BYTES_LOST, never.hex(): BYTES_LOST}


def test_a_locked_vault_checks_bytes_alone(vault: Vault) -> None:
    """While the keys are out of reach they are not judged, and the report says so."""
    damaged, keyless = vault.publish(LARGE, SMALL)
    vault.flip_slot(keyless)
    vault.blob(damaged).write_bytes(b"")
    vault.store.lock()
    report = vault.audit()
    assert [entry["content_id"] for entry in report["damaged"]] == [damaged.hex()]
    assert not report["keys_read"]


def test_whatever_is_lost_is_repaired_from_a_peer(vault: Vault, tmp_path: Path) -> None:
    """Bytes, key or both come back from who holds them; nobody else's are touched, and all is available again."""
    bytes_lost, key_lost, both_lost, dropped_key = ids = vault.publish(LARGE, SMALL, LARGE, SMALL)
    peer = Peer(vault.store, ids)
    vault.blob(bytes_lost).unlink()
    vault.blob(both_lost).unlink()
    vault.store.drop_bytes(dropped_key)
    for content_id in (key_lost, both_lost, dropped_key):
        vault.flip_slot(content_id)
    vault.restart()
    peer.store = vault.store
    nobody = Repairer(vault.store, bring=peer.bring, held_elsewhere=lambda _: set())
    report = vault.audit(nobody)
    assert {entry["content_id"] for entry in report["damaged"]} == {i.hex() for i in ids}
    assert not any(entry["repaired"] for entry in report["damaged"])
    report = vault.audit(Repairer(vault.store, bring=peer.bring, held_elsewhere=set))
    assert report["ok"], report["damaged"]
    assert report["damaged_total"] == 4
    assert vault.problems() == {}
    assert all(vault.store.is_available(i) for i in ids)
    assert vault.store.lost() == 0
    vault.restart()
    assert vault.problems() == {}


class Peer:
    """Another member's node that holds everything: a copy of key and ciphertext in memory."""

    def __init__(self, store: DiskContentStore, ids: list[ContentId]) -> None:
        self.store = store
        self.kept: dict[ContentId, tuple[ContentKey, Root, bytes, list[bytes]]] = {}
        for content_id in ids:
            row, key = store._state.index.get(content_id), store.content_key(content_id)
            assert row is not None
            assert row.root is not None
            assert key is not None
            cipher = store.read_ciphertext(content_id, 0, 1 << 20)
            self.kept[content_id] = (key, row.root, cipher, store.leaf_hashes(content_id))

    def bring(self, content_id: ContentId, *, timeout: float) -> None:
        """See `repair.Bring`: what `peers.transfer` does, without the network."""
        assert timeout > 0
        key, root, cipher, leaves = self.kept[content_id]
        if self.store.content_key(content_id) is None:
            self.store.put_key(content_id, key)
        if not self.store.has_bytes(content_id):
            receiver = self.store.begin_ciphertext(content_id, root, len(cipher))
            if not receiver.has_leaves:
                receiver.set_leaves(leaves)
            if receiver.missing():
                receiver.write_segment(0, cipher)
            receiver.finish()


def test_more_damage_than_fits_is_counted(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report lists as much as has room, what was not repaired first, and says how much there is."""
    ids = vault.publish(*[SMALL] * 8)
    for content_id in ids:
        vault.flip_slot(content_id)

    def repair(content_id: ContentId, _: Root) -> str | None:
        return None if content_id != ids[7] else "nobody has it"

    monkeypatch.setattr(audit, "LISTED_BYTES", 500)
    report = audit_vault(vault.log, vault.store, AuditPages(), device=vault.owner.device, read_data=True, repair=repair)
    assert report["damaged_total"] == 8
    assert 0 < len(report["damaged"]) < 8
    assert report["damaged"][0]["content_id"] == ids[7].hex()
    assert not report["ok"]


def test_reading_what_lost_its_key_is_told(vault: Vault) -> None:
    """A content without its key gives our error to readers, and no peer is handed anything."""
    (lost,) = vault.publish(SMALL)
    vault.flip_slot(lost)
    with pytest.raises(NotYetAvailableError, match="key"):
        vault.store.need_key(lost)
    with pytest.raises(VaultError):
        vault.store.incoming_reader(
            lost, lambda _: None, author=vault.owner.member, root=Root(bytes(32)), length=1, padded_length=256
        )
