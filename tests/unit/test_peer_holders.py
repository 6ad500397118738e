"""Asking connected devices what they hold: one question each, and nothing is believed that was not asked."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, cast

from walytis_vault.domain.errors import TimedOutError
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.ids import ContentId
from walytis_vault.peers import protocol as p
from walytis_vault.peers.holders import held_elsewhere, who_holds
from walytis_vault.peers.link import PeerLink

ONE, TWO, OTHER = (ContentId(bytes([n]) * 16) for n in (1, 2, 3))


class Link:
    """Answers every question alike."""

    def __init__(self, answer: p.Reply | Exception) -> None:
        self.answer = answer
        self.asked: list[p.Request] = []

    def send(self, request: p.Request, payload: Any = (), *, timeout: float) -> Future[Any]:
        """See `PeerLink.send`."""
        self.asked.append(request)
        future = Future[Any]()
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        else:
            future.set_result((self.answer, []))
        return future


def device(name: str, link: Link) -> tuple[DeviceKeys, PeerLink]:
    """A device behind a link."""
    keys = DeviceKeys(
        member=name, device=name, ed25519=bytes(32), ml_dsa_65=bytes(1952), bus=bytes(32), peer_id=name
    )  # fmt: skip
    return keys, cast(PeerLink, link)


def test_each_device_is_asked_once_and_only_answers_to_the_question_count() -> None:
    """Who refuses, is silent, answers something else or names other contents is taken to hold none of them."""
    answers: dict[str, p.Reply | Exception] = {
        "did:z": p.Held(contents=(ONE, OTHER)),
        "did:a": p.Held(contents=(TWO, ONE)),
        "did:other-words": p.Done(),
        "did:older": p.Refused(code="untrusted-input", message="malformed"),
        "did:silent": TimedOutError("the other node does not answer"),
    }
    links = {name: Link(answer) for name, answer in answers.items()}
    asked = [device(name, link) for name, link in links.items()]
    assert who_holds(asked, [ONE, TWO], timeout=1.0) == {ONE: ("did:a", "did:z"), TWO: ("did:a",)}
    assert all(link.asked == [p.Holds(contents=(ONE, TWO))] for link in links.values())


def test_many_contents_are_asked_for_in_parts() -> None:
    """More than one question may hold are several; all that anybody holds is found."""
    link = Link(p.Held(contents=(ONE, TWO)))
    many = [ContentId((n + 1000).to_bytes(16, "big")) for n in range(p.HOLDS_AT_ONCE)]
    assert held_elsewhere([device("did:a", link)], [ONE, *many, TWO]) == {ONE, TWO}
    assert [len(r.contents) for r in link.asked if isinstance(r, p.Holds)] == [p.HOLDS_AT_ONCE, 2]
    assert held_elsewhere([], [ONE]) == set()
