"""Which contents of other members a node fetches before anybody asks: what the user said, checked and kept.

The rule is this machine's own and stands in vault.json; no other node hears of it. A request fetches whatever it
asks for, whatever the rule.
"""

from __future__ import annotations

from typing import Final, get_args

import msgspec

from walytis_vault.domain.errors import MisuseError
from walytis_vault.home import FetchMode, Home, VaultConfig

MODES: Final = get_args(FetchMode)


class FetchWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks for. Sizes are bytes; what is None stays as it was, but a mode begins without bounds."""

    mode: str | None = None
    limit: int | None = None
    space: int | None = None


AS_BEFORE: Final = FetchWish()


def apply(home: Home, config: VaultConfig, wish: FetchWish) -> VaultConfig:
    """Change the rule and keep it; the caller owns the home.

    Raises:
        MisuseError: an unknown mode, a negative size, or bounds where nothing is fetched. StorageError.
    """
    if wish == AS_BEFORE:
        return config
    mode = wish.mode if wish.mode is not None else config.fetch
    if mode not in MODES:
        raise MisuseError(f"no such way to fetch as {str(mode)[:40]!r}: choose one of {', '.join(MODES)}")
    if any(size is not None and size < 0 for size in (wish.limit, wish.space)):
        raise MisuseError("a bound for what is fetched is a number of bytes, 0 or more")
    if mode == "on-request" and (wish.limit is not None or wish.space is not None):
        raise MisuseError("with `on-request` nothing is fetched unasked: bounds for it have no meaning")
    limit, space = (None, None) if wish.mode is not None else (config.fetch_limit, config.fetch_space)
    changed = msgspec.structs.replace(
        config,
        fetch=mode,
        fetch_limit=limit if wish.limit is None else wish.limit,
        fetch_space=space if wish.space is None else wish.space,
    )
    if changed != config:
        home.change_config(changed)
    return changed
