"""Opened descriptors in memory: for filters on name, media type, label and text. Nothing of it is ever stored.

Built when such a filter is first used, kept up to date by position, emptied of a content when that content is
forgotten. It is bounded: beyond `capacity` descriptors are opened again for each query.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, Final, NamedTuple

from walytis_vault.projections.base import Descriptor
from walytis_vault.projections.grams import Grams
from walytis_vault.projections.wanted import Opened, Wanted, media_matches

CAPACITY: Final = 250_000
"""Descriptors kept (a count; about 1 KiB each with a long name, 300 bytes as a rule)."""
FEW: Final = 2000
"""Up to so many contents that may fit (a count) are looked at and sorted; with more, all are walked in order."""
RARE: Final = 300
"""Up to so many contents that may fit (a count) are sooner looked up one by one than found among those of an author."""
STRIDE: Final = 128
"""Contents looked at in the first go while walking (a count); each go looks at twice as many as the one before."""
LONGEST: Final = 4096
"""Contents looked at in one go at most (a count): the lock is held for it."""
_TOP: Final = b"\xff" * 17
"""Beyond every content id."""

Unseal = Callable[[bytes, bytes], Descriptor | None]
Changed = Callable[[int], tuple[int, Sequence[bytes] | None]]


class Place(NamedTuple):
    """Where a content stands in each order."""

    order: bytes
    time_ms: int
    padded: int
    position: int


class _Doc(NamedTuple):
    opened: Opened
    place: Place
    number: int


_KEYS: Final[dict[str, Callable[[Place, bytes], tuple[Any, ...]]]] = {
    "order": lambda place, content_id: (place.order, content_id),
    "time": lambda place, content_id: (place.time_ms, place.position, content_id),
    "size": lambda place, content_id: (place.padded, place.position, content_id),
}


class Search:
    """The opened descriptors of one catalogue. Threads may share it."""

    def __init__(self, unseal: Unseal, capacity: int = CAPACITY, changed: Changed = lambda _mark: (0, None)) -> None:
        """`changed` tells which keys came (see `Local.changed`)."""
        self._unseal = unseal
        self._changed = changed
        self._mark = -1
        self._capacity = capacity
        self._lock = threading.Lock()
        """Held briefly, for changes of the indexes."""
        self._catching = threading.Lock()
        """Held while many descriptors are opened."""
        self._forgets = 0
        """How often something was forgotten: what was opened meanwhile is not to be kept unseen."""
        self._docs: dict[bytes, _Doc] = {}
        self._numbered: dict[int, bytes] = {}
        self._number = 0
        self._labels: dict[str, set[bytes]] = {}
        self._media: dict[str, set[bytes]] = {}
        self._names: dict[str, set[bytes]] = {}
        self._orders: dict[str, list[tuple[Any, ...]]] = {}
        """All contents in an order; made when it is first walked."""
        self._grams: Grams | None = None
        """Made when a text is first searched."""
        self._closed: dict[bytes, Place] = {}
        """Contents whose key was not here, tried again when it came."""
        self._again: set[bytes] = set()
        """Those among them that have another descriptor now."""
        self.seen = 0
        """Position up to which contents were looked at."""
        self.full = False
        """More contents than fit were seen: `find` cannot tell any more."""

    def open(self, content_id: bytes, sealed: bytes | None, place: Place) -> Opened | None:
        """The descriptor of a content, from memory or opened now; None when it cannot be opened."""
        known = self._docs.get(content_id)
        if known is not None:
            return known.opened
        if sealed is None:
            return None
        while True:
            forgets = self._forgets
            descriptor = self._unseal(content_id, sealed)
            if descriptor is None:
                return None
            name, labels = descriptor.name, tuple(descriptor.labels)
            text = "\n".join(t for t in (name, *labels) if t).casefold()
            opened = Opened(name, descriptor.media_type, labels, descriptor.length, text)
            if self._keep(content_id, opened, place, forgets):
                return opened

    def _keep(self, content_id: bytes, opened: Opened, place: Place, forgets: int) -> bool:
        """Keep it, unless something was forgotten since it was opened: then False, and it is to be opened again."""
        with self._lock:
            if forgets != self._forgets:
                return False
            if content_id in self._docs:
                return True
            if len(self._docs) >= self._capacity:
                self.full = True
                return True
            self._number += 1
            self._docs[content_id] = _Doc(opened, place, self._number)
            self._numbered[self._number] = content_id
            self._closed.pop(content_id, None)
            for label in opened.labels:
                self._labels.setdefault(label, set()).add(content_id)
            if opened.media_type is not None:
                self._media.setdefault(opened.media_type, set()).add(content_id)
            if opened.name is not None:
                self._names.setdefault(opened.name, set()).add(content_id)
            for kind, entries in self._orders.items():
                insort(entries, _KEYS[kind](place, content_id))
            if self._grams is not None:
                self._grams.add(self._number, opened.text)
            return True

    def forget(self, contents: Iterable[bytes]) -> None:
        """Drop everything known of these contents."""
        with self._lock:
            self._forgets += 1
            for content_id in contents:
                self._closed.pop(content_id, None)
                doc = self._docs.pop(content_id, None)
                if doc is None:
                    continue
                del self._numbered[doc.number]
                for label in doc.opened.labels:
                    _discard(self._labels, label, content_id)
                _discard(self._media, doc.opened.media_type, content_id)
                _discard(self._names, doc.opened.name, content_id)
                for kind, entries in self._orders.items():
                    del entries[bisect_left(entries, _KEYS[kind](doc.place, content_id))]
                if self._grams is not None:
                    self._grams.remove(doc.number, doc.opened.text)

    def again(self, content_id: bytes, place: Place) -> None:
        """Another descriptor stands for a content now: drop the old one, and open the new one at the next query."""
        self.forget([content_id])
        with self._lock:
            self._closed[content_id] = place
            self._again.add(content_id)

    def clear(self) -> None:
        """Drop everything: the vault was locked, and `unseal` raises until it is open again."""
        with self._catching, self._lock:
            self._forgets += 1
            for known in (self._docs, self._numbered, self._labels, self._media, self._names, self._closed):
                known.clear()
            self._again.clear()
            self._orders.clear()
            self._grams = None
            self.seen, self.full = 0, False

    def catch_up(
        self,
        more: Callable[[int], Iterable[tuple[Place, bytes, bytes]]],
        sealed_of: Callable[[int], bytes | None],
    ) -> None:
        """Open what was published since, and whatever got its key since.

        Args:
            more: position -> the next (place, content id, sealed), empty at the end.
            sealed_of: position -> sealed descriptor.
        """
        with self._catching:
            mark, changed = self._changed(self._mark)
            with self._lock:
                due = list(self._closed) if changed is None else {*changed, *self._again} & self._closed.keys()
                waiting = [(content_id, self._closed[content_id]) for content_id in due]
                self._again.clear()
            for content_id, place in waiting:
                sealed = sealed_of(place.position)
                still_closed = sealed is not None and self.open(content_id, sealed, place) is None
                with self._lock:
                    if not still_closed and self._closed.get(content_id) is place:
                        del self._closed[content_id]
            self._mark = mark
            while not self.full:
                batch = list(more(self.seen))
                if not batch:
                    return
                for place, content_id, sealed in batch:
                    if self.open(content_id, sealed, place) is None and len(self._closed) < self._capacity:
                        self._closed[content_id] = place
                    self.seen = place.position

    # Finding

    def find(self, wanted: Wanted, sort: str, after: Sequence[Any] | None = None) -> Iterator[bytes] | None:
        """The contents that fit, in order; None when memory does not hold them all.

        Args:
            wanted: some filter.
            sort: `order`, `time` or `size`, with `-` in front for descending.
            after: the key to start behind, without the content id.
        """
        kind, down = sort.lstrip("-"), sort.startswith("-")
        with self._lock:
            if self.full:
                return None
            pool = self._pool(wanted)
            if pool is not None and len(pool) <= FEW:
                return iter(self._sorted(pool, wanted, kind, down, after))
            if kind not in self._orders:
                self._orders[kind] = sorted(_KEYS[kind](doc.place, i) for i, doc in self._docs.items())
        return self._walk(wanted, pool, kind, down, after)

    def is_rare(self, wanted: Wanted) -> bool:
        """Whether so few contents can fit that nothing else narrows them down sooner."""
        with self._lock:
            pool = None if self.full else self._pool(wanted)
        return pool is not None and len(pool) <= RARE

    def _pool(self, wanted: Wanted) -> Set[bytes] | None:
        """A set of contents, as small as the indexes tell, in which are all that fit; None for all."""
        pools: list[Set[bytes]] = []
        if wanted.label is not None:
            pools.append(self._labels.get(wanted.label, frozenset()))
        if wanted.name is not None:
            pools.append(self._names.get(wanted.name, frozenset()))
        if wanted.media_type is not None:
            fitting = [ids for media, ids in self._media.items() if media_matches(wanted.media_type, media)]
            pools.append(fitting[0] if len(fitting) == 1 else frozenset().union(*fitting))
        if wanted.words and not any(len(pool) <= FEW for pool in pools):
            if self._grams is None:
                self._grams = Grams()
                for doc in self._docs.values():
                    self._grams.add(doc.number, doc.opened.text)
            numbers = self._grams.candidates(wanted.words)
            if numbers is not None:
                ids, docs, words = self._numbered, self._docs, wanted.words
                pools.append({i for i in [ids[n] for n in numbers] if wanted.fits(docs[i].opened, words)})
        return min(pools, key=len, default=None)

    def _sorted(
        self, pool: Set[bytes], wanted: Wanted, kind: str, down: bool, after: Sequence[Any] | None
    ) -> list[bytes]:
        key, docs, words = _KEYS[kind], self._docs, wanted.words
        keys = sorted([key(docs[i].place, i) for i in pool if wanted.fits(docs[i].opened, words)])
        return [k[-1] for k in _part(keys, down, after)]

    def _walk(
        self, wanted: Wanted, pool: Set[bytes] | None, kind: str, down: bool, after: Sequence[Any] | None
    ) -> Iterator[bytes]:
        stride, words = STRIDE, wanted.words
        while True:
            with self._lock:
                entries = self._orders.get(kind, [])
                end = bisect_left(entries, tuple(after)) if after is not None and down else len(entries)
                start = 0 if after is None or down else bisect_right(entries, (*after, _TOP))
                some = entries[max(0, end - stride) : end][::-1] if down else entries[start : start + stride]
                docs = self._docs
                found = [k for k in some if (pool is None or k[-1] in pool) and wanted.fits(docs[k[-1]].opened, words)]
            if not some:
                return
            for entry in found:
                yield entry[-1]
            after, stride = some[-1][:-1], min(2 * stride, LONGEST)


def _part(keys: list[tuple[Any, ...]], down: bool, after: Sequence[Any] | None) -> list[tuple[Any, ...]]:
    """What lies behind a key, in the wanted direction."""
    if down:
        end = len(keys) if after is None else bisect_left(keys, tuple(after))
        return keys[:end][::-1]
    return keys if after is None else keys[bisect_right(keys, (*after, _TOP)) :]


def _discard(index: dict[str, set[bytes]], word: str | None, content_id: bytes) -> None:
    if word is not None and word in index:
        index[word].discard(content_id)
        if not index[word]:
            del index[word]
