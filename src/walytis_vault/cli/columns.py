"""The columns of the tables: which fields of a view's rows are shown, from which width on.

What people copy (ids, DIDs of members) is never cut. A view of a plug-in gets a column for each of its fields.
"""

from __future__ import annotations

from typing import Any, Final

from walytis_vault.cli.output import Column, moment, short_did, size

DID_WIDTH: Final = 180
"""Terminals of fewer columns show a member by its fingerprint, which names it as well."""
GONE: Final = "(forgotten)"
WORDS_MOST: Final = 3
"""Elements of a list that a cell names before it counts the rest."""


def _name(row: dict[str, Any]) -> str:
    return str(row["name"] or (GONE if row["state"] == "forgotten" else ""))


def _note(row: dict[str, Any]) -> str:
    """What makes a content more than a content that stands alone."""
    said = []
    if row.get("conflict"):
        said.append("conflict")
    if row.get("revises"):
        said.append("current" if row.get("current") else "older")
    elif row.get("revisions"):
        said.append(f"{row['revisions']} revised" if row["revisions"] > 1 else "revised")
    if row.get("contested"):
        said.append("contested")
    return ",".join(said)


def _fingerprint(did: str) -> str:
    indent = " " * (len(did) - len(did.lstrip()))
    return indent + (did.rpartition("#")[2] or did.strip())


def _about(row: dict[str, Any]) -> str:
    if row["ballot_id"]:
        return str(row["ballot_id"])
    return _cell(row["contents"]) or short_did(row["member"])


LS: Final = (
    Column("ID", lambda r: r["content_id"]),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("SIZE", lambda r: size(r["size"]), right=True),
    Column("NAME", _name, elastic=True),
    Column("TIME", lambda r: moment(r["time"]), from_width=100),
    Column("NOTE", _note, from_width=120, optional=True),
    Column("TYPE", lambda r: r["media_type"] or "", from_width=140, elastic=True),
    Column("LABELS", lambda r: ",".join(r["labels"] or ()), from_width=140, elastic=True),
    Column("AUTHOR", lambda r: short_did(r["author"]), from_width=120),
)
BALLOTS: Final = (
    Column("BALLOT", lambda r: r["ballot_id"]),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("CONTENTS", lambda r: len(r["contents"]), right=True),
    Column("CONSENTS", lambda r: f"{len(r['consents'])}/{len(r['electorate'])}", right=True),
    Column("RECEIPTS", lambda r: len(r["receipts"]), right=True),
    Column("TIME", lambda r: moment(r["time"]), from_width=100),
    Column("BY", lambda r: short_did(r["proposer"]), from_width=120),
    Column("REASON", lambda r: r.get("reason") or "", from_width=140, elastic=True),
)
MEMBERS: Final = (
    Column("MEMBER", lambda r: _fingerprint(r["did"]), below_width=DID_WIDTH),
    Column("DID", lambda r: r["did"], from_width=DID_WIDTH),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("DEVICES", lambda r: len(r["devices"]) if "devices" in r else "", right=True, from_width=100),
    Column("SINCE", lambda r: moment(r["time"]), from_width=120),
    Column("ADMITTED BY", lambda r: "founder" if r["founder"] else short_did(r["admitted_by"]), from_width=140),
    Column("REMOVED BY", lambda r: short_did(r["removed_by"]), from_width=140, optional=True),
    Column("REASON", lambda r: r["reason"] or "", from_width=100, elastic=True, optional=True),
)
HOLDERS: Final = (
    Column("CONTENT", lambda r: r["content_id"]),
    Column("STATE", lambda r: r["state"], coloured=True),
    Column("MEMBER", lambda r: short_did(r["member"])),
    Column("HERE", lambda r: "yes" if r["here"] else "no"),
    Column("ALSO HELD BY", lambda r: ", ".join(short_did(d) for d in r["held_by"] or ()), elastic=True),
    Column("DEVICE", lambda r: short_did(r["device"]), from_width=120),
    Column("TIME", lambda r: moment(r["time"]), from_width=100),
)
TIMELINE: Final = (
    Column("POSITION", lambda r: r["position"], right=True),
    Column("TIME", lambda r: moment(r["time"]), from_width=100),
    Column("EVENT", lambda r: r["type"].partition("/")[0].replace("-", " ")),
    Column("ABOUT", _about, elastic=True),
    Column("AUTHOR", lambda r: short_did(r["author"]), from_width=120),
)
AUDIT: Final = (
    Column("NUMBER", lambda r: r["number"], right=True),
    Column("VERDICT", lambda r: r["verdict"], coloured=True),
    Column("EVENTS", lambda r: "" if r["events"] is None else r["events"], right=True),
    Column("TIME", lambda r: moment(r["time"])),
    Column("AUTHOR", lambda r: short_did(r["author"])),
    Column("REASON", lambda r: r["reason"] or "", elastic=True),
)
OF_VIEW: Final = {
    "catalogue": LS,
    "ballots": BALLOTS,
    "members": MEMBERS,
    "holders": HOLDERS,
    "timeline": TIMELINE,
    "audit": AUDIT,
}


def of_rows(view: str, rows: list[dict[str, Any]]) -> tuple[Column, ...]:
    """The columns of a view; those of a stranger's view are the fields of its first row."""
    if view in OF_VIEW:
        return OF_VIEW[view]
    return tuple(Column(field.upper(), _field(field), elastic=True) for field in (rows[0] if rows else ()))


def shown_rows(view: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table: those of the view, and below a member with several devices one for each of them."""
    if view != "members":
        return rows
    lines: list[dict[str, Any]] = []
    for row in rows:
        lines.append(row)
        devices = row["devices"] if len(row["devices"]) > 1 else ()
        for device in devices:
            below = {"did": f"  {device['device']}", "admitted_by": device["added_by"], "founder": False}
            lines.append({**{k: device[k] for k in ("state", "time", "removed_by", "reason")}, **below})
    return lines


def _field(name: str) -> Any:
    return lambda row: _cell(row.get(name))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        rest = len(value) - WORDS_MOST
        return ",".join(_cell(v) for v in value[:WORDS_MOST]) + (f" and {rest} more" if rest > 0 else "")
    if isinstance(value, str) and value.startswith("did:"):
        return short_did(value)
    return str(value)
