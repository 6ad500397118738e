"""Filters on what is sealed: name, media type, labels, text; and what they are held against."""

from __future__ import annotations

import msgspec


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

    @property
    def words(self) -> list[str]:
        """The words of `text`, case folded."""
        return [] if self.text is None else self.text.casefold().split()

    def matches(self, opened: Opened | None) -> bool:
        """Whether a descriptor fits; one that cannot be opened fits no filter."""
        return not self or (opened is not None and self.fits(opened, self.words))

    def fits(self, opened: Opened, words: list[str]) -> bool:
        """As `matches`, for many: `words` are those of this filter, taken apart once."""
        if self.name is not None and opened.name != self.name:
            return False
        if self.label is not None and self.label not in opened.labels:
            return False
        if self.media_type is not None and not media_matches(self.media_type, opened.media_type):
            return False
        text = opened.text
        for word in words:  # noqa: SIM110  (several times as fast as all() over a generator)
            if word not in text:
                return False
        return True


def media_matches(wanted: str, media_type: str | None) -> bool:
    """Whether a media type is the wanted one, or of the wanted family."""
    if media_type is None:
        return False
    return media_type.startswith(wanted[:-1]) if wanted.endswith("/*") else media_type == wanted
