"""The view `members`: who belongs to the vault, who let them in, and with which devices.

Folds membership events in their shared order: the first admission of a DID counts, a removal is for good.
Which key may sign what is not decided here but in domain/membership.py. Columns: docs/views.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final, Literal

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.domain.batch import key_id_of_device
from walytis_vault.domain.forgetting import Order
from walytis_vault.projections import paging
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.store import Connection, Table, one
from walytis_vault.projections.table_query import Condition, page_by_order

ROWS: Final = Table(
    name="rows",
    columns={"did": "blob", "ord": "blob", "removed": "integer", "position": "integer", "facts": "blob"},
    primary_key=("did",),
    indexes=(("ord",),),
)
State = Literal["member", "removed"]


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a member, present or past."""

    device: str
    """Device DID."""
    key_id: str
    """Hex id of its current signing keys."""
    peer_id: str
    state: State
    """`removed` also when the member was."""
    time: str
    """When these keys were announced first, by the announcer's clock."""
    added_by: str
    """Device DID that announced or admitted it; its own when it founded the vault or renewed its keys."""
    removed_by: str | None
    """Member DID, when the device alone was removed."""
    removed: str | None
    reason: str | None


class MemberRow(msgspec.Struct, frozen=True, kw_only=True):
    """A member, present or past."""

    did: str
    state: State
    admitted_by: str
    """Member DID; the founder admitted itself."""
    time: str
    """When it came, by the clock of whoever let it in."""
    removed_by: str | None
    removed: str | None
    """When it was removed, by the remover's clock."""
    reason: str | None
    """What the remover gave as reason; empty when nothing, None for a member that was not removed."""
    founder: bool
    devices: tuple[DeviceRow, ...]
    position: int


class _Key(msgspec.Struct, array_like=True, frozen=True):
    order: Order
    device: str
    peer_id: str
    time_ms: int
    added_by: str


_Removal = tuple[Order, str, int, str]
"""Order, by whom, time, reason."""


class _Facts(msgspec.Struct, array_like=True):
    """What is known of one DID; each field is a set reduced to what counts."""

    admission: tuple[Order, str, int, bool] | None = None
    """Order, by whom, time, whether as founder: the smallest order."""
    removal: _Removal | None = None
    """The smallest order."""
    keys: dict[str, _Key] = {}
    """Hex key id -> its first announcement."""
    superseded: list[str] = []
    lost: dict[str, _Removal] = {}
    """Device -> its removal with the smallest order."""


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder(_Facts).decode


class MembersView(View):
    """See the module."""

    name = "members"
    version: ClassVar[int] = 2
    row: ClassVar[type[msgspec.Struct]] = MemberRow
    tables: ClassVar[tuple[Table, ...]] = (ROWS,)
    filters: ClassVar[frozenset[str]] = frozenset({"did", "state", "sort"})

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.handlers = {
            ev.VaultFounded: self._founded,
            ev.MemberAdmitted: self._admitted,
            ev.MemberRemoved: self._removed,
            ev.DeviceRemoved: self._lost,
            ev.KeyAnnounced: self._announced,
        }
        rows = self.t("rows")
        self._select = f"SELECT ord, did, removed, position, facts FROM {rows}"
        self._upsert = (
            f"INSERT INTO {rows} (did, ord, removed, position, facts) VALUES (?, ?, ?, ?, ?) ON CONFLICT (did)"
            " DO UPDATE SET ord = excluded.ord, removed = excluded.removed, facts = excluded.facts"
        )

    def _founded(self, connection: Connection, event: ev.VaultFounded, origin: ev.Origin, position: int) -> None:
        facts = self._facts(connection, event.founder)
        _admit(facts, origin, founder=True)
        self._write(connection, event.founder, facts, position)

    def _admitted(self, connection: Connection, event: ev.MemberAdmitted, origin: ev.Origin, position: int) -> None:
        facts = self._facts(connection, event.member)
        _admit(facts, origin, founder=False)
        _announce(facts, event.keys, origin)
        self._write(connection, event.member, facts, position)

    def _removed(self, connection: Connection, event: ev.MemberRemoved, origin: ev.Origin, position: int) -> None:
        facts = self._facts(connection, event.member)
        removal = (origin.order, origin.author, origin.time_ms, event.reason)
        facts.removal = removal if facts.removal is None else min(facts.removal, removal)
        self._write(connection, event.member, facts, position)

    def _lost(self, connection: Connection, event: ev.DeviceRemoved, origin: ev.Origin, position: int) -> None:
        facts = self._facts(connection, event.member)
        removal = (origin.order, origin.author, origin.time_ms, event.reason)
        facts.lost[event.device] = min(facts.lost.get(event.device, removal), removal)
        self._write(connection, event.member, facts, position)

    def _announced(self, connection: Connection, event: ev.KeyAnnounced, origin: ev.Origin, position: int) -> None:
        facts = self._facts(connection, event.keys.member)
        _announce(facts, event.keys, origin)
        if event.supersedes is not None:
            facts.superseded = sorted({*facts.superseded, event.supersedes.hex()})
        self._write(connection, event.keys.member, facts, position)

    def _facts(self, connection: Connection, did: str) -> _Facts:
        raw = one(connection.execute(self._select + " WHERE did = ?", (did.encode(),)))
        return _Facts(keys={}, superseded=[], lost={}) if raw is None else _decode(raw[4])

    def _write(self, connection: Connection, did: str, facts: _Facts, position: int) -> None:
        first = facts.admission or facts.removal
        known = [*(k.order for k in facts.keys.values()), *(lost[0] for lost in facts.lost.values())]
        order = first[0] if first is not None else min(known)
        key, removed = did.encode(), facts.removal is not None
        connection.execute(self._upsert, (key, paging.order_bytes(order), int(removed), position, _encode(facts)))
        self.touch(key, position)

    def page(self, request: Request) -> Page:
        """See `View.page`. In the order of admission, unless asked otherwise."""
        self.check_filters(request.filters)
        given = {"sort": "order", **{k: v for k, v in request.filters.items() if v is not None}}
        condition = Condition()
        if "did" in given:
            condition.add("did = ?", paging.text("did", given["did"]).encode())
        state = paging.choice("state", given.get("state", "all"), ("member", "removed", "all"))
        if state != "all":
            condition.add("removed = ?", int(state == "removed"))
        request = msgspec.structs.replace(request, filters={"sort": given["sort"]})
        return page_by_order(self, request, select=self._select, condition=condition, build=self._row)

    def _row(self, _connection: Connection, raw: Sequence[Any]) -> MemberRow:
        _, did, _, position, packed = raw
        facts = _decode(packed)
        admission = facts.admission or ((0, b"", 0), "", 0, False)
        devices = [_device(facts, i, key) for i, key in facts.keys.items() if i not in facts.superseded]
        return MemberRow(
            did=bytes(did).decode(),
            state="member" if facts.removal is None else "removed",
            admitted_by=admission[1],
            time=paging.iso(admission[2]),
            removed_by=None if facts.removal is None else facts.removal[1],
            removed=None if facts.removal is None else paging.iso(facts.removal[2]),
            reason=None if facts.removal is None else facts.removal[3],
            founder=admission[3],
            devices=tuple(sorted(devices, key=lambda d: (d.device, d.key_id))),
            position=position,
        )

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """See `View.rows_by_key`."""
        found: dict[bytes, msgspec.Struct] = {}
        with self._view.store.read() as connection:
            for key in keys:
                raw = one(connection.execute(self._select + " WHERE did = ?", (key,)))
                if raw is not None:
                    found[key] = self._row(connection, raw)
        return found

    def key_text(self, key: bytes) -> str:
        """See `View.key_text`."""
        return key.decode()

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """See `View.digests`."""
        sql, params = self._select + " WHERE did >= ?", [low]
        if high is not None:
            sql += " AND did < ?"
            params.append(high)
        for order, did, removed, _, facts in connection.execute(sql + " ORDER BY did", params):
            yield bytes(did), hashlib.sha256(_encode([order, did, removed, facts])).digest()


def _admit(facts: _Facts, origin: ev.Origin, *, founder: bool) -> None:
    admission = (origin.order, origin.author, origin.time_ms, founder)
    facts.admission = admission if facts.admission is None else min(facts.admission, admission)


def _device(facts: _Facts, key_id: str, key: _Key) -> DeviceRow:
    lost = facts.lost.get(key.device)
    return DeviceRow(
        device=key.device,
        key_id=key_id,
        peer_id=key.peer_id,
        state="member" if lost is None and facts.removal is None else "removed",
        time=paging.iso(key.time_ms),
        added_by=key.added_by,
        removed_by=None if lost is None else lost[1],
        removed=None if lost is None else paging.iso(lost[2]),
        reason=None if lost is None else lost[3],
    )


def _announce(facts: _Facts, keys: ev.DeviceKeys, origin: ev.Origin) -> None:
    key_id = key_id_of_device(keys).hex()
    key = _Key(origin.order, keys.device, keys.peer_id, origin.time_ms, origin.device)
    known = facts.keys.get(key_id)
    if known is None or key.order < known.order:
        facts.keys[key_id] = key
