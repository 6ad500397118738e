"""Replies of late to calls of administration, so that one whose reply was lost is answered and not done again.

In memory, for some minutes, a bounded number: a reply may be a secret, and must not outlive its use. Calls with an
effect on the log are not kept here: the service remembers them for ever. Used by the door's thread only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from walytis_vault.bus import calls as c
from walytis_vault.bus.messages import RequestKey
from walytis_vault.domain.errors import ConflictError

KEPT_S: Final = 300.0
KEPT_MOST: Final = 256
"""Replies (a count)."""
KEPT_SIZE: Final = 64 << 10
"""Bytes of the largest that is kept: reports are made again."""


class KeptReplies:
    """By client and request id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, bytes], tuple[float, RequestKey | None, bytes]] = OrderedDict()

    @staticmethod
    def wants(call: c.AnyCall) -> bool:
        """Whether the replies of such a call are kept here."""
        return call.VERB == "admin" and call.LANE == "slow" and not call.EFFECT

    def find(self, key: RequestKey, call: c.AnyCall) -> bytes | None:
        """The reply, if the call was answered before. Raises ConflictError when the id was another call's."""
        self._drop_old()
        kept = self._kept.get((key.client, key.request_id))
        if kept is None:
            return None
        if kept[1] != self._comparable(key, call):
            raise ConflictError("this request id was used for another request: make a new one")
        return kept[2]

    def keep(self, key: RequestKey, call: c.AnyCall, body: bytes) -> None:
        """Remember a reply. A lock leaves nothing else behind."""
        if isinstance(call, c.LockCall):
            self._kept.clear()
        if len(body) <= KEPT_SIZE:
            self._kept[key.client, key.request_id] = time.monotonic(), self._comparable(key, call), body
            if len(self._kept) > KEPT_MOST:
                self._kept.popitem(last=False)

    @staticmethod
    def _comparable(key: RequestKey, call: c.AnyCall) -> RequestKey | None:
        # Nothing is kept by which a passphrase could be guessed.
        return None if isinstance(call, c.SECRET) else key

    def _drop_old(self) -> None:
        now = time.monotonic()
        while self._kept and now - next(iter(self._kept.values()))[0] > KEPT_S:
            self._kept.popitem(last=False)
