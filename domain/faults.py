"""Named fault points: `fault("publish.after_rename")` marks a place where a crash would matter.

In production no hook is installed and a fault point costs one global look-up. Tests install a hook that
kills the process, raises an I/O error, or counts. No environment variable and no message can install one.
"""

from __future__ import annotations

from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def fault(name: str) -> None:
    """Mark the place `name` (dotted, `area.step`). Raises only what an installed test hook raises."""
    if _hook is not None:
        _hook(name)


def install(hook: Callable[[str], None] | None) -> None:
    """Install the hook that every fault point calls; None removes it. For tests only."""
    global _hook  # noqa: PLW0603 - one process has one hook, by design
    _hook = hook
