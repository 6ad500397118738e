"""Which texts hold a word, or a part of one: an index over three characters at a time, in memory.

It tells candidates; whoever asks looks into the texts. `remove` takes out every trace of a text.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

LENGTH: Final = 3
"""Characters of a gram."""
MANY: Final = 4000
"""From so many candidates on (a count) walking all texts in order finds enough of them sooner."""


class Grams:
    """Numbers of texts by the grams in them. Numbers must be added in ascending order. One thread at a time."""

    def __init__(self) -> None:
        self._numbers: dict[str, array[int]] = {}

    def add(self, number: int, text: str) -> None:
        """Add a text."""
        for gram in _grams(text):
            found = self._numbers.get(gram)
            if found is None:
                found = self._numbers[gram] = array("I")
            found.append(number)

    def remove(self, number: int, text: str) -> None:
        """Take a text out again."""
        for gram in _grams(text):
            found = self._numbers.get(gram)
            at = -1 if found is None else bisect_left(found, number)
            if found is None or at == len(found) or found[at] != number:
                continue
            found.pop(at)
            if not found:
                del self._numbers[gram]

    def candidates(self, words: Sequence[str]) -> Sequence[int] | None:
        """The texts that may hold all of some words, fewest first tried; None when they are too many to tell."""
        best: Sequence[int] | None = None
        for word in words:
            found = self._of_word(word)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        return best

    def _of_word(self, word: str) -> Sequence[int] | None:
        if len(word) >= LENGTH:
            lists = [self._numbers.get(word[i : i + LENGTH], ()) for i in range(len(word) - LENGTH + 1)]
            shortest = min(lists, key=len)
            return shortest if len(shortest) <= MANY else None
        found = [numbers for gram, numbers in self._numbers.items() if word in gram]
        if sum(len(numbers) for numbers in found) > MANY:
            return None
        return sorted({number for numbers in found for number in numbers})


def _grams(text: str) -> set[str]:
    padded = f"\n{text}\n"  # so that a text of one character has a gram, too
    return {padded[i : i + LENGTH] for i in range(len(padded) - LENGTH + 1)}
