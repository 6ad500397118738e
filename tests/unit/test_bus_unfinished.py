"""What is ended when memory grows, and what is not, on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from walytis_vault.bus import unfinished
from walytis_vault.bus.peer import inode_of
from walytis_vault.bus.unfinished import QUIET_S, Unfinished

LATE = 1000.0


class Place:
    """A listening socket, and three connections to it."""

    def __init__(self, folder: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "s"))
        self.listener.listen()
        self.clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        self.accepted = []
        for client in self.clients:
            client.connect(str(folder / "s"))
            self.accepted.append(self.listener.accept()[0])
        self.watch = Unfinished(memory=100, mute=10.0)
        self.watch.listens(f"ipc://{folder / 's'}")

    def said(self, *numbers: int, at: float = LATE) -> dict[int, float]:
        """These connections just said something whole."""
        return {inode_of(self.accepted[number].fileno()): at for number in numbers}

    def ended(self) -> list[int]:
        """Which connections were ended, seen from the other side."""
        found = []
        for number, client in enumerate(self.clients):
            client.setblocking(False)
            try:
                if client.recv(1) == b"":
                    found.append(number)
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        for one in (self.listener, *self.clients, *self.accepted):
            one.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(unfinished, "resident", lambda: 1000)
    made = Place(tmp_path)
    assert made.watch.look(LATE - 5.0, made.said(0, 1, 2)) == []
    yield made
    made.close()


def grow(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The process has so many bytes now."""
    monkeypatch.setattr(unfinished, "resident", lambda: size)


def test_who_sends_and_finishes_nothing_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that just said something whole, and not one that is only quiet."""
    place.clients[0].send(b"more and more")
    place.clients[1].send(b"more and more")
    grow(monkeypatch, 1101)
    ended = place.watch.look(LATE + QUIET_S / 2 + 0.01, place.said(0, at=LATE) | place.said(1, at=LATE - 1.0))
    assert [c.inode for c in ended] == list(place.said(1))
    assert place.ended() == [1]


def test_all_quiet_ones_only_when_nothing_tells_them_apart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only after a while, once; what memory is then is the new measure."""
    grow(monkeypatch, 1101)
    said = place.said(0, at=LATE + 10.0)
    assert place.watch.look(LATE, said) == []
    assert len(place.watch.look(LATE + 2.0, said)) == 2
    assert place.ended() == [1, 2]
    assert place.watch.look(LATE + 2.25, said) == []
    grow(monkeypatch, 1150)
    assert place.watch.look(LATE + 4.5, said) == []


def test_while_memory_stays_nobody_is_ended_but_who_is_mute(place: Place) -> None:
    """However much is unread; whoever says nothing whole for long is ended all the same."""
    place.clients[0].send(b"more and more")
    assert place.watch.look(LATE, {}) == []
    assert place.ended() == []
    ended = place.watch.look(LATE + 30.0, place.said(0, 1, at=LATE + 29.0))
    assert [c.inode for c in ended] == list(place.said(2))


def test_without_the_means_to_look_nothing_happens(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor left, or no such files on this system."""

    def fail() -> int:
        raise OSError("too many open files")

    monkeypatch.setattr(unfinished, "resident", fail)
    assert place.watch.look(LATE, {}) == []
