"""The rules of contents: hiding, revising, forgetting, expiring, and what commands may do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.view_world import MEMBERS, admitted, at, content, founded, proposed, published, random_history
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import (
    Contents,
    Verdict,
    boundary,
    decide_forget,
    decide_restore,
    decide_retract,
    decide_revise,
)
from walytis_vault.domain.errors import (
    ConflictError,
    ForgottenError,
    MisuseError,
    PermissionRefusedError,
    UnknownIdError,
)
from walytis_vault.domain.forgetting import Ballot

A, B, C, _ = MEMBERS


def fold(*events: ev.Recorded) -> Contents:
    contents = Contents()
    for event in events:
        contents.apply(event)
    return contents


def verdict(number: int, *events: ev.Recorded) -> Verdict:
    return fold(*events).verdict(content(number))


RETRACT, RESTORE = ev.ContentRetracted(content_id=content(1)), ev.ContentRestored(content_id=content(1))


def test_only_the_author_hides_a_content() -> None:
    """A retraction by another member does nothing."""
    first = at(published(1), A, 2)
    assert not verdict(1, first, at(RETRACT, B, 3)).retracted
    assert verdict(1, first, at(RETRACT, A, 3)).retracted


def test_the_last_of_retract_and_restore_counts() -> None:
    """Order decides, not arrival."""
    events = [at(published(1), A, 2), at(RETRACT, A, 3), at(RESTORE, A, 4)]
    assert not verdict(1, *events).retracted
    assert not verdict(1, *reversed(events)).retracted
    assert verdict(1, *events, at(RETRACT, A, 5)).retracted


def test_a_revision_of_a_revision_belongs_to_the_original() -> None:
    """Chains of links lead to the root, and the last version is the current one."""
    contents = fold(at(published(3, revises=2), A, 4), at(published(2, revises=1), A, 3), at(published(1), A, 2))
    found = contents.verdicts()
    assert found[content(3)].original == found[content(2)].original == content(1)
    assert [v.head for v in (found[content(i)] for i in (1, 2, 3))] == [False, False, True]
    assert not found[content(3)].conflict


def test_revisions_by_others_stand_alone() -> None:
    """Only the author of the original may revise it."""
    found = verdict(2, at(published(1), A, 2), at(published(2, revises=1), B, 3))
    assert found.original == content(2)


def test_links_in_a_circle_lead_nowhere() -> None:
    """A link counts only towards something earlier, so that circles cannot exist."""
    found = fold(at(published(1, revises=2), A, 2), at(published(2, revises=1), A, 3)).verdicts()
    assert found[content(1)].original == content(1)
    assert found[content(2)].original == content(1)


def test_concurrent_revisions_are_a_conflict_until_a_later_one_resolves_it() -> None:
    """Both sides show; a revision whose author saw both settles it; nothing is lost."""
    events = [
        at(published(1), A, 2),
        at(published(2, revises=1), A, 3, device="did:a/1"),
        at(published(3, revises=1), A, 3, device="did:a/2"),
    ]
    found = fold(*events).verdicts()
    assert [(found[content(i)].head, found[content(i)].conflict) for i in (1, 2, 3)] == [
        (False, False),
        (True, True),
        (True, True),
    ]
    found = fold(*events, at(published(4, revises=1), A, 4)).verdicts()
    assert [i for i in (1, 2, 3, 4) if found[content(i)].head] == [4]
    assert not any(v.conflict for v in found.values())


def test_hiding_an_original_hides_its_revisions() -> None:
    """Hiding a revision alone brings the version before it back."""
    events = [at(published(1), A, 2), at(published(2, revises=1), A, 3)]
    assert verdict(2, *events, at(RETRACT, A, 4)).retracted
    alone = fold(*events, at(ev.ContentRetracted(content_id=content(2)), A, 4)).verdicts()
    assert (alone[content(1)].head, alone[content(2)].head) == (True, False)


def test_forgetting_covers_all_revisions_also_late_ones() -> None:
    """A revision that arrives after the ballot carried is forgotten too."""
    events = [at(published(1), A, 2), at(proposed(1, [1], [A]), A, 3), at(published(2, revises=1), A, 3)]
    assert verdict(2, *events).forgetting == "carried"
    assert verdict(2, *events, at(published(3), A, 2)).forgetting == "carried"
    assert verdict(3, *events, at(published(3), A, 2)).forgetting == "none"


def test_forgetting_a_revision_leaves_the_original() -> None:
    """What was named is forgotten, with what revises it; what it revises stays and is current again."""
    found = fold(at(published(1), A, 2), at(published(2, revises=1), A, 3), at(proposed(1, [2], [A]), A, 4)).verdicts()
    assert (found[content(1)].forgetting, found[content(1)].head) == ("none", True)
    assert found[content(2)].forgetting == "carried"


def test_what_expires_is_only_what_says_so_itself() -> None:
    """A content does not come to expire by what turns out later about the one that it revises."""
    revised = at(published(1, expires_ms=50), A, 2), at(published(2, revises=1, expires_ms=60), A, 3)
    assert verdict(2, *revised).expires_ms == 60
    assert verdict(2, at(published(1, expires_ms=50), A, 2), at(published(2, revises=1), A, 3)).expires_ms is None


def test_an_id_published_twice_is_contested() -> None:
    """The smaller order is the content."""
    contents = fold(at(published(1, size=7), B, 5), at(published(1, size=5), A, 2))
    assert contents.publications[content(1)].author == A
    assert content(1) in contents.contested


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shuffle=st.integers(0, 2**32))
def test_every_order_of_arrival_gives_the_same_verdicts(seed: int, shuffle: int) -> None:
    """Whatever arrives when, and how often, the contents stand alike."""
    history = random_history(seed, 50)
    other = history + history[::4]
    random.Random(shuffle).shuffle(other)
    first, second = fold(*history), fold(*other)
    assert first.verdicts() == second.verdicts()
    assert first.contested == second.contested


def vault(*events: ev.Recorded) -> Contents:
    return fold(at(founded(), A, 1), at(admitted(B), A, 1, salt=1), *events)


def test_forgetting_is_decided() -> None:
    """A request proposes what is left, joins an open ballot, or says why not."""
    contents = vault(at(published(1), A, 2), at(published(2), A, 2, salt=1))
    assert decide_forget(contents, [content(2), content(1)], by=B) == tuple(sorted([content(1), content(2)]))
    with pytest.raises(MisuseError, match="at least one"):
        decide_forget(contents, [], by=A)
    with pytest.raises(UnknownIdError, match="ls"):
        decide_forget(contents, [content(1), content(9)], by=A)
    with pytest.raises(PermissionRefusedError):
        decide_forget(contents, [content(1)], by=C)
    contents.apply(at(proposed(1, [1], [A, B]), A, 5))
    assert isinstance(decide_forget(contents, [content(1)], by=B), Ballot)
    contents.apply(at(proposed(2, [1], [A]), A, 6))
    with pytest.raises(ForgottenError):
        decide_forget(contents, [content(1)], by=B)
    assert decide_forget(contents, [content(1), content(2)], by=B) == (content(2),)


def test_revising_retracting_and_restoring_are_decided() -> None:
    """Only the author may, and only what is not forgotten."""
    contents = vault(at(published(1), A, 2), at(published(2, revises=1), A, 3))
    assert decide_revise(contents, content(2), by=A) == content(1)
    assert decide_retract(contents, content(1), by=A)
    for decide in (decide_revise, decide_retract, decide_restore):
        with pytest.raises(PermissionRefusedError):
            decide(contents, content(1), by=B)
        with pytest.raises(UnknownIdError):
            decide(contents, content(9), by=A)
    contents.apply(at(RETRACT, A, 4))
    assert not decide_retract(contents, content(1), by=A)
    assert decide_restore(contents, content(1), by=A)
    with pytest.raises(ConflictError, match=content(1).hex()):
        decide_restore(contents, content(2), by=A)
    contents.apply(at(proposed(1, [1], [A]), A, 5))
    with pytest.raises(ForgottenError):
        decide_restore(contents, content(1), by=A)


def test_the_boundary_names_contents_ballots_and_membership() -> None:
    """A command's consistency boundary covers everything that its decision reads."""
    items = boundary([content(1)], [content(2)]).items
    assert [i.tags for i in items] == [[f"content:{content(1).hex()}"], [f"ballot:{content(2).hex()}"], []]
    assert ev.MemberRemoved.TOPIC in items[2].types
