"""Opened descriptors in memory: for filters on name, media type, label and text. Nothing of it is ever stored.

Built when such a filter is first used, kept up to date by position, emptied of a content when that content is
forgotten. It is bounded: beyond `capacity` descriptors are opened again for each query.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Set
from typing import Final

import msgspec

from walytis_vault.projections.base import Descriptor

CAPACITY: Final = 250_000
"""Descriptors kept (a count; about 1 KiB each with a long name, 300 bytes as a rule)."""
UNCOPIED: Final = 10_000
"""From so many contents on (a count) a result is not copied. More than `FEW` of catalogue_query."""
RETRIES: Final = 1000
"""Contents without a key here that one query tries again (a count)."""

Unseal = Callable[[bytes, bytes], Descriptor | None]


class Opened(msgspec.Struct, frozen=True):
    """What a descriptor says, detached from the object that came from outside."""

    name: str | None
    media_type: str | None
    labels: tuple[str, ...]
    length: int
    text: str
    """What a text search looks at: name and labels, case folded."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Filters on sealed fields; None does not filter."""

    name: str | None = None
    media_type: str | None = None
    """Exact, or a family such as `image/*`."""
    label: str | None = None
    text: str | None = None
    """Every word must occur somewhere in name or labels; case does not matter."""

    def __bool__(self) -> bool:
        return any(v is not None for v in (self.name, self.media_type, self.label, self.text))

    def matches(self, opened: Opened | None) -> bool:
        """Whether a descriptor fits; one that cannot be opened fits no filter."""
        if not self:
            return True
        if opened is None:
            return False
        if self.name is not None and opened.name != self.name:
            return False
        if self.label is not None and self.label not in opened.labels:
            return False
        if self.media_type is not None and not _media_matches(self.media_type, opened.media_type):
            return False
        if self.text is not None:
            return all(word in opened.text for word in self.text.casefold().split())
        return True


def _media_matches(wanted: str, media_type: str | None) -> bool:
    if media_type is None:
        return False
    return media_type.startswith(wanted[:-1]) if wanted.endswith("/*") else media_type == wanted


class Search:
    """The opened descriptors of one catalogue. Threads may share it."""

    def __init__(self, unseal: Unseal, capacity: int = CAPACITY) -> None:
        self._unseal = unseal
        self._capacity = capacity
        self._lock = threading.Lock()
        """Held briefly, for changes of the indexes."""
        self._catching = threading.Lock()
        """Held while many descriptors are opened."""
        self._forgets = 0
        """How often something was forgotten: what was opened meanwhile is not to be kept unseen."""
        self._opened: dict[bytes, Opened] = {}
        self._labels: dict[str, set[bytes]] = {}
        self._media: dict[str, set[bytes]] = {}
        self._names: dict[str, set[bytes]] = {}
        self._closed: dict[bytes, int] = {}
        """Contents whose key was not here: id -> position, tried again by later queries."""
        self.seen = 0
        """Position up to which contents were looked at."""
        self.full = False
        """More contents than fit were seen: `candidates` cannot tell any more."""

    def open(self, content_id: bytes, sealed: bytes | None) -> Opened | None:
        """The descriptor of a content, from memory or opened now; None when it cannot be opened."""
        known = self._opened.get(content_id)
        if known is not None or sealed is None:
            return known
        while True:
            forgets = self._forgets
            descriptor = self._unseal(content_id, sealed)
            if descriptor is None:
                return None
            name, labels = descriptor.name, tuple(descriptor.labels)
            text = "\n".join(t for t in (name, *labels) if t).casefold()
            opened = Opened(name, descriptor.media_type, labels, descriptor.length, text)
            if self._keep(content_id, opened, forgets):
                return opened

    def _keep(self, content_id: bytes, opened: Opened, forgets: int) -> bool:
        """Keep it, unless something was forgotten since it was opened: then False, and it is to be opened again."""
        with self._lock:
            if forgets != self._forgets:
                return False
            if len(self._opened) >= self._capacity:
                self.full = True
                return True
            self._opened[content_id] = opened
            self._closed.pop(content_id, None)
            for label in opened.labels:
                self._labels.setdefault(label, set()).add(content_id)
            if opened.media_type is not None:
                self._media.setdefault(opened.media_type, set()).add(content_id)
            if opened.name is not None:
                self._names.setdefault(opened.name, set()).add(content_id)
            return True

    def forget(self, contents: Iterable[bytes]) -> None:
        """Drop everything known of these contents."""
        with self._lock:
            self._forgets += 1
            for content_id in contents:
                self._closed.pop(content_id, None)
                opened = self._opened.pop(content_id, None)
                if opened is None:
                    continue
                for label in opened.labels:
                    _discard(self._labels, label, content_id)
                _discard(self._media, opened.media_type, content_id)
                _discard(self._names, opened.name, content_id)

    def catch_up(
        self,
        more: Callable[[int], Iterable[tuple[int, bytes, bytes]]],
        sealed_of: Callable[[int], bytes | None],
    ) -> None:
        """Open what was published since, and try again what could not be opened.

        Args:
            more: position -> the next (position, content id, sealed), empty at the end.
            sealed_of: position -> sealed descriptor.
        """
        with self._catching:
            with self._lock:
                waiting = list(self._closed.items())[:RETRIES]
            for content_id, position in waiting:
                self._closed.pop(content_id, None)
                sealed = sealed_of(position)
                if sealed is not None and self.open(content_id, sealed) is None:
                    self._closed[content_id] = position  # to the back of the queue
            while not self.full:
                batch = list(more(self.seen))
                if not batch:
                    return
                for position, content_id, sealed in batch:
                    self.seen = position
                    if self.open(content_id, sealed) is None and len(self._closed) < self._capacity:
                        self._closed[content_id] = position

    def candidates(self, wanted: Wanted) -> Set[bytes] | None:
        """The contents that fit, None when memory does not hold them all."""
        with self._lock:
            if self.full:
                return None
            sets: list[Set[bytes]] = []
            if wanted.label is not None:
                sets.append(self._labels.get(wanted.label, frozenset()))
            if wanted.name is not None:
                sets.append(self._names.get(wanted.name, frozenset()))
            if wanted.media_type is not None:
                fitting = [ids for media, ids in self._media.items() if _media_matches(wanted.media_type, media)]
                sets.append(fitting[0] if len(fitting) == 1 else frozenset().union(*fitting))
            if wanted.text is not None:
                words, opened = wanted.text.casefold().split(), self._opened
                pool = min(sets, key=len, default=opened.keys())
                sets.append({i for i in pool if all(word in opened[i].text for word in words)})
            smallest, *others = sorted(sets, key=len)
            if not others and len(smallest) > UNCOPIED:
                return smallest  # only asked for membership, so that growing meanwhile does no harm
            return frozenset(i for i in smallest if all(i in other for other in others))


def _discard(index: dict[str, set[bytes]], word: str | None, content_id: bytes) -> None:
    if word is not None and word in index:
        index[word].discard(content_id)
        if not index[word]:
            del index[word]
