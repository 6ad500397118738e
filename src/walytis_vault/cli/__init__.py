"""The command line: `walytis-vault`.

It talks to a running node like any other client, and refuses to do anything with a vault's files itself: only
`init` and `serve` open a home. Nothing heavy is imported before a command needs it. Spec: design.md section 9.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 error, 2 wrong usage, 130 interrupted.

    Args:
        argv: the words after the program's name; None for those of this process.
    """
    try:
        from walytis_vault.cli.app import run

        return run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        return 130
