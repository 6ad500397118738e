"""What views are told about the contents on this machine: which are here, and which changed since they last asked."""

from __future__ import annotations

from pathlib import Path

from support.content_stores import ciphertext, new_id, open_store, put
from walytis_vault.adapters.storage.presence import Presence
from walytis_vault.projections.base import AWAY, ERASED, HERE


def test_what_comes_goes_and_is_erased_is_told_once(tmp_path: Path) -> None:
    """Each follower hears of what changed after its mark; a new one is told to look at everything."""
    store = open_store(tmp_path)
    presence = store.presence
    mark, changed = presence.changed(-1)
    assert changed is None
    first, second, unknown = put(store, b"a" * 900), put(store, b"b" * 900), new_id()
    before = mark
    mark, changed = presence.changed(mark)
    assert changed == (first.content_id, second.content_id)
    assert presence.changed(mark) == (mark, ())
    cipher, key = ciphertext(store, first), store.content_key(first.content_id)
    leaves = store.leaf_hashes(first.content_id)
    assert key is not None
    store.drop_bytes(first.content_id)
    store.erase((second.content_id,))
    mark, changed = presence.changed(mark)
    assert set(changed or ()) == {first.content_id, second.content_id}
    asked = [second.content_id, unknown, first.content_id]
    assert presence.kept(asked) == [ERASED, AWAY, AWAY]
    assert presence.kept(asked * 400) == [ERASED, AWAY, AWAY] * 400
    receiver = store.begin_ciphertext(first.content_id, first.root, len(cipher))
    if not receiver.has_leaves:
        receiver.set_leaves(leaves)
    receiver.write_segment(0, cipher)
    receiver.finish()
    mark, changed = presence.changed(mark)
    assert first.content_id in (changed or ())
    assert presence.kept([first.content_id]) == [HERE]
    other = open_store(tmp_path / "other")
    other.put_key(unknown, key)
    assert other.presence.changed(0) == (1, (unknown,))
    assert set(presence.changed(before)[1] or ()) >= {first.content_id, second.content_id}
    store.close()
    other.close()


def test_whoever_missed_more_than_is_remembered_looks_at_everything(tmp_path: Path) -> None:
    """Memory is bounded: the oldest changes are told no more, and nobody is told a part of what it missed."""
    store = open_store(tmp_path)
    presence = Presence(store._state.index.database, remembered=3)
    presence.note([b"1", b"2", b"3"])
    assert presence.changed(0) == (3, (b"1", b"2", b"3"))
    presence.note([b"4"])
    assert presence.changed(0) == (4, None)
    assert presence.changed(1) == (4, (b"2", b"3", b"4"))
    assert presence.changed(9) == (4, None)
    store.close()
