"""The tables of the log's index, its rows as structs, and how a DCB query becomes SQL."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from eventsourcing.dcb.api import DCBQuery

from walytis_vault.domain.events import LoggedEvent, Origin
from walytis_vault.domain.ids import BatchId

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS batches(
  seq INTEGER PRIMARY KEY, batch_id BLOB NOT NULL UNIQUE, device TEXT NOT NULL, author TEXT NOT NULL,
  key_id BLOB NOT NULL, number INTEGER NOT NULL, depth INTEGER NOT NULL, context INTEGER NOT NULL,
  time_ms INTEGER NOT NULL, on_chain INTEGER NOT NULL, void INTEGER NOT NULL DEFAULT 0,
  first INTEGER NOT NULL, count INTEGER NOT NULL, membership INTEGER NOT NULL, block BLOB, envelope BLOB NOT NULL,
  branch INTEGER NOT NULL REFERENCES branches);
CREATE UNIQUE INDEX IF NOT EXISTS batches_branch ON batches(branch, number);
CREATE TABLE IF NOT EXISTS branches(branch INTEGER PRIMARY KEY, parent INTEGER, left INTEGER);
CREATE INDEX IF NOT EXISTS batches_device ON batches(device, number);
CREATE INDEX IF NOT EXISTS batches_block ON batches(block);
CREATE INDEX IF NOT EXISTS batches_order ON batches(depth, batch_id);
CREATE INDEX IF NOT EXISTS batches_pending ON batches(seq) WHERE on_chain = 0;
CREATE INDEX IF NOT EXISTS batches_without_block ON batches(seq) WHERE on_chain = 2;
CREATE INDEX IF NOT EXISTS batches_membership ON batches(seq) WHERE membership = 1;
CREATE TABLE IF NOT EXISTS events(
  position INTEGER PRIMARY KEY, batch INTEGER NOT NULL REFERENCES batches, idx INTEGER NOT NULL,
  topic TEXT NOT NULL, data BLOB NOT NULL, tags BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_topic ON events(topic, position);
CREATE TABLE IF NOT EXISTS tags(tag TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY(tag, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads(batch_id BLOB PRIMARY KEY, depth INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS epoch(only INTEGER PRIMARY KEY CHECK(only = 1), value INTEGER NOT NULL);
INSERT OR IGNORE INTO epoch VALUES(1, abs(random() % 1000000007));
CREATE TABLE IF NOT EXISTS replies(
  client TEXT NOT NULL, request_id BLOB NOT NULL, digest BLOB NOT NULL, reply BLOB NOT NULL, made_ms INTEGER NOT NULL,
  PRIMARY KEY(client, request_id)) WITHOUT ROWID;
DROP INDEX IF EXISTS replies_made;
CREATE INDEX IF NOT EXISTS replies_kept ON replies(made_ms) WHERE reply <> x'';
"""


class BatchRow(msgspec.Struct, frozen=True):
    """What the index knows of one batch."""

    seq: int
    batch_id: BatchId
    device: str
    author: str
    number: int
    depth: int
    context: int
    on_chain: bool
    void: bool
    membership: bool


class EventRow(msgspec.Struct, frozen=True):
    """One event on its way into the index."""

    topic: str
    data: bytes
    tags: list[str]


TAGS_ENCODER = msgspec.msgpack.Encoder()
_TAGS_DECODER = msgspec.msgpack.Decoder(list[str])
BATCH_COLUMNS: Final = "seq, batch_id, device, author, number, depth, context, on_chain, void, membership"


def where_clause(query: DCBQuery | None) -> tuple[str, list[str]]:
    """Translate a DCB query; every item is a conjunction, the items a disjunction.

    Items of one tag alone become one list, since SQLite takes at most 1,000 expressions side by side.
    """
    if query is None or not query.items:
        return "1", []
    parts: list[str] = []
    params: list[str] = []
    alone = [item.tags[0] for item in query.items if len(item.tags) == 1 and not item.types]
    if alone:
        parts.append("e.position IN (SELECT t.position FROM json_each(?) j JOIN tags t ON t.tag = j.value)")
        params.append(json.dumps(alone))
    for item in query.items:
        if len(item.tags) == 1 and not item.types:
            continue
        clauses = []
        if item.types:
            clauses.append(f"e.topic IN ({','.join('?' * len(item.types))})")
            params += item.types
        for tag in item.tags:
            clauses.append("e.position IN (SELECT position FROM tags WHERE tag = ?)")
            params.append(tag)
        parts.append("(" + (" AND ".join(clauses) or "1") + ")")
    return "(" + " OR ".join(parts) + ")", params


def batch_row(row: tuple[Any, ...]) -> BatchRow:
    return BatchRow(row[0], BatchId(row[1]), *row[2:7], *(bool(flag) for flag in row[7:]))


def logged_event(row: tuple[Any, ...]) -> LoggedEvent:
    _, topic, data, tags, idx, batch_id, depth, author, device, number, time_ms = row
    origin = Origin(
        batch_id=batch_id, index=idx, depth=depth, author=author, device=device, number=number, time_ms=time_ms
    )
    return LoggedEvent(type=topic, data=data, tags=_TAGS_DECODER.decode(tags), origin=origin)
