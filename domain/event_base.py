"""What all events share: the base class, and the types and limits of their fields."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from eventsourcing.dcb.domain import Decision
from msgspec import Meta

from walytis_vault.domain.limits import LIMITS

Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
DidText = Annotated[str, Meta(min_length=1, max_length=LIMITS.did)]
Sealed = Annotated[bytes, Meta(max_length=LIMITS.descriptor)]
Counter = Annotated[int, Meta(ge=0, le=2**53)]


class Event(msgspec.Struct, Decision, frozen=True, kw_only=True):
    """Base of all events: what eventsourcing calls a decision (its own msgspec base is not frozen)."""

    TOPIC: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as eventsourcing wants them."""
        return msgspec.structs.asdict(self)

    def tags(self) -> list[str]:
        """The tags under which the log finds this event; they follow from its fields alone."""
        return []
