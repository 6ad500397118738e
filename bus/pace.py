"""How often clients ask again, how long they are patient, and the ids that they make."""

from __future__ import annotations

import secrets
from typing import Final

from walytis_vault.bus.protocol import Nothing

REPEAT = 1.0
"""Seconds without a reply after which a request is sent again; doubled each time."""
REPEAT_MOST = 5.0
KEEPALIVE = 8.0
"""Seconds after which a silent stream is pinged. The node cuts it after `BusLimits.idle`."""
FALL_BACK = 3.0
"""Seconds without progress on the bulk socket after which data comes on the other."""
SLOWEST = 20 << 20
"""Bytes per second at which the slowest disk makes an upload durable."""
NOTHING_BODY: Final = Nothing()


def new_id() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(16)
