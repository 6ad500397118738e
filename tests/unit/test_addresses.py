"""Where other nodes were last seen: new addresses count however full the book is, and a full disk loses nobody."""

from __future__ import annotations

import errno
from pathlib import Path

from support.faulty_files import FaultPlan, FaultyFileSystem
from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.domain.limits import LIMITS
from walytis_vault.peers.addresses import AddressBook

HERE, THERE = ("/ip4/10.0.0.1/tcp/1",), ("/ip4/10.0.0.2/tcp/2",)


def full_book(path: Path) -> AddressBook:
    """A book with no room left."""
    book = AddressBook(path, OsFileSystem())
    book._known = {f"peer-{n}": HERE for n in range(LIMITS.members)}
    return book


def test_a_full_book_takes_what_peers_say_of_themselves(tmp_path: Path) -> None:
    """Known peers move, new ones come in for those that were heard of longest ago; hearsay displaces nobody."""
    book = full_book(tmp_path / "a.json")
    book.learn("peer-5", THERE)
    assert book.of("peer-5") == THERE
    book.learn("heard of", THERE, hearsay=True)
    assert book.of("heard of") == ()
    last = f"peer-{LIMITS.members - 1}"
    book.learn(last, HERE)
    book.learn("new", THERE)
    assert book.of("new") == THERE
    assert book.of(last) == HERE
    assert book.of(f"peer-{LIMITS.members - 2}") == ()
    assert AddressBook(tmp_path / "a.json", OsFileSystem()).known() == book.known()


def test_the_longest_book_is_read_again(tmp_path: Path) -> None:
    """However long all addresses are, the file of a full book is not taken for a damaged one."""
    book = full_book(tmp_path / "a.json")
    long = tuple(f"/dns4/{n}{chr(0x10FFFF) * 240}/tcp/1" for n in range(8))
    book._known = dict.fromkeys((f"{n}{'p' * 120}" for n in range(LIMITS.members)), long)
    book.learn("new", long)
    assert AddressBook(tmp_path / "a.json", OsFileSystem()).known() == book.known()


def test_a_disk_that_cannot_be_written_loses_nobody(tmp_path: Path) -> None:
    """What is learned counts at once; that it cannot be kept is no failure of the peer's."""
    plan = FaultPlan()
    book = AddressBook(tmp_path / "a.json", FaultyFileSystem(plan))
    plan.fail_call(0, errno.ENOSPC)
    book.learn("peer", HERE)
    assert plan.failed
    assert book.of("peer") == HERE
    book.learn("peer", THERE)
    assert AddressBook(tmp_path / "a.json", OsFileSystem()).of("peer") == THERE
