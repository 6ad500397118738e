"""What the eraser does at a start: it sweeps what was never published and finds what is due, however much there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.content_stores import open_store
from support.log_world import Device, founded, open_log
from walytis_vault import eraser
from walytis_vault.adapters.system import SystemClock, SystemRandomness
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.bus.messages import InlinePublish, Published, PublishOptions
from walytis_vault.domain.ids import ContentId
from walytis_vault.eraser import Eraser
from walytis_vault.publishing_together import publish_together


class LaterClock(SystemClock):
    """A wall clock that a test moves."""

    ahead_ms = 0

    def wall_ms(self) -> int:
        """See `domain.ports.Clock`."""
        return super().wall_ms() + self.ahead_ms


def test_a_start_looks_at_everything_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine published and five cut-off contents exactly the cut-off and the expired ones go."""
    for bound in ("PAGE", "READ_AT_ONCE", "SWEPT_AT_ONCE"):
        monkeypatch.setattr(eraser, bound, 2)
    device, chain, clock = Device("a"), MemoryNetwork(1).replica("a"), LaterClock()
    log = open_log(tmp_path, chain, device, founded(chain, device))
    log.start()
    store = open_store(tmp_path)
    soon = clock.wall_ms() + 60_000
    wanted = [
        InlinePublish(options=PublishOptions(expires_ms=soon if n % 4 == 0 else None), data=b"x") for n in range(9)
    ]
    results = publish_together(
        log,
        store,
        wanted,
        vault_id=chain.chain_id,
        author=device.member,
        clock=clock,
        randomness=SystemRandomness(),
    )
    ids = [ContentId(bytes.fromhex(r.content_id)) for r in results if isinstance(r, Published)]
    cut_off = [ContentId(bytes([n]) * 16) for n in range(1, 6)]
    for content_id in cut_off:
        store.writer(content_id, author=device.member).finish()
    dropped: list[bytes] = []
    made = Eraser(
        log.recorder,
        store,
        device=device.device,
        clock=clock,
        drop_from_views=dropped.extend,
        unpublished=store.content_ids(),
    )
    made.look()
    assert sorted(store.content_ids()) == sorted(ids)
    clock.ahead_ms = 120_000
    made.look()
    assert set(store.content_ids()) == {i for n, i in enumerate(ids) if n % 4}
    assert set(dropped) == set(ids[::4])
    log.close()
    store.close()
