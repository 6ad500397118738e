"""SQL and values on their way to PostgreSQL: what is translated, what is packed, and what a URL gives away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walytis_vault.adapters.storage import postgres_sql as pg
from walytis_vault.adapters.storage.postgres_place import schema_of, without_password
from walytis_vault.domain.errors import MisuseError


@pytest.mark.parametrize(
    ("sql", "numbered"),
    [
        ("SELECT a FROM t WHERE b = ? AND c > ?", "SELECT a FROM t WHERE b = $1 AND c > $2"),
        ("SELECT '?', \"?\" FROM t WHERE b = ?", "SELECT '?', \"?\" FROM t WHERE b = $1"),
        ("SELECT 'it''s ?' WHERE a = ?", "SELECT 'it''s ?' WHERE a = $1"),
        ("SELECT 100 % 7", "SELECT 100 % 7"),
    ],
)
def test_placeholders_are_numbered(sql: str, numbered: str) -> None:
    """Question marks become numbers, except inside quotes."""
    assert pg.translate(sql).sql == numbered


def test_plain_inserts_are_taken_apart() -> None:
    """An INSERT of nothing but placeholders can go in bulk; one that computes cannot."""
    plain = pg.translate("INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (b) DO UPDATE SET a = excluded.a").insert
    assert plain is not None
    assert (plain.table, plain.columns, plain.key) == ("t", ("a", "b"), (1,))
    assert pg.in_bulk(plain, ["integer", "blob"]) == (
        "INSERT INTO t (a, b) SELECT * FROM unnest($1::bigint[], $2::bytea[])"
        " ON CONFLICT (b) DO UPDATE SET a = excluded.a"
    )
    for other in (
        "INSERT INTO t (a, b) VALUES (?, 1)",
        "INSERT INTO t (a, b) VALUES (?, coalesce(?, 1))",
        "INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (b) DO UPDATE SET a = ?",
        "INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (c) DO UPDATE SET a = 1",
        "INSERT INTO t (a, b) SELECT ?, ?",
        "UPDATE t SET a = ?",
    ):
        assert pg.translate(other).insert is None, other


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40))
def test_parts_keep_order_and_never_update_a_row_twice(rows: list[tuple[int, int]]) -> None:
    """Put together again the parts are what was given, and within a part no key comes twice."""
    found = list(pg.parts(rows, (0,)))
    assert [row for part in found for row in part] == rows
    assert all(len({row[0] for row in part}) == len(part) for part in found)
    assert len(found) <= len(rows)


def test_many_rows_are_cut() -> None:
    """No statement takes more than `MANY` rows."""
    assert [len(p) for p in pg.parts([(n,) for n in range(2 * pg.MANY + 1)], ())] == [pg.MANY, pg.MANY, 1]


@given(st.text(), st.text())
def test_text_survives_and_keeps_its_order(one: str, other: str) -> None:
    """PostgreSQL's text has no NUL: what stands for it reads back, and sorts as the texts did."""
    assert pg.unescaped(pg.escaped(one)) == one
    assert "\x00" not in pg.escaped(one)
    assert (pg.escaped(one).encode() < pg.escaped(other).encode()) == (one.encode() < other.encode())


def test_values_that_do_not_fit_are_refused() -> None:
    """Whole numbers beyond 64 bits, and values of another kind, are errors before anything is sent."""
    for number in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError):
            pg.packed([1, number], "integer")
        with pytest.raises(OverflowError):
            pg.packed([None, number], "integer")
    with pytest.raises(TypeError):
        pg.packed([5], "blob")
    assert pg.packed([1, None], "integer").data[-8:] == b"\x00\x00\x00\x01\xff\xff\xff\xff"


def test_index_names_fit() -> None:
    """PostgreSQL cuts names at 63 bytes: ours stay below, and differ where tables or columns differ."""
    long = "x" * 63
    names = {pg.index_name(long, "a"), pg.index_name(long, "b"), pg.index_name("y" + long[1:], "a")}
    assert len(names) == 3
    assert all(len(name) <= 63 for name in names)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://ann:s%40cret@db.example:5432/vault", "postgresql://ann@db.example:5432/vault"),
        ("postgres://ann@db/vault?sslmode=verify-full", "postgresql://ann@db/vault?sslmode=verify-full"),
        ("postgresql://db/vault?user=ann&password=secret", "postgresql://db/vault?user=ann"),
        ("postgresql://ann:secret@/vault?host=/run/x", "postgresql://ann@/vault?host=/run/x"),
        ("postgresql://", "postgresql://"),
    ],
)
def test_a_url_is_stored_without_its_password(url: str, kept: str) -> None:
    """User, host, database and options stay; every form of password goes."""
    assert without_password(url) == kept
    assert without_password(kept) == kept
    assert "secret" not in without_password(url)


@pytest.mark.parametrize(
    "url", ["", "mysql://x/y", "postgresql:/x", "host=x password=secret", "postgresql://a b/c", "x" * 3000, "/tmp/x.db"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    """The error says what a place looks like, and repeats nothing of what might be a password."""
    with pytest.raises(MisuseError, match="sqlite") as refused:
        without_password(url)
    assert "secret" not in str(refused.value)


def test_each_node_has_a_schema_of_its_own() -> None:
    """Two devices of a vault never share tables, since positions are a node's own."""
    names = {schema_of("vault", "did:a"), schema_of("vault", "did:b"), schema_of("vaultdid:", "a")}
    assert len(names) == 3
    assert all(len(name) <= 63 for name in names)
