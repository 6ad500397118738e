"""Whose fault an error is: a view's own code, or the store and all that the views share.

Views may come from strangers, so whatever one raises must cost only itself. Errors of the store concern every view
and pass; a statement that the store took for wrong is the view's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from walytis_vault.domain.errors import StorageError, VaultError, ViewFailedError
from walytis_vault.projections.store import StatementError

MAX_ERROR: Final = 500
"""Characters kept of an error."""


def is_its_own(error: BaseException) -> bool:
    """Whether an error out of a view's code, or out of its transaction, is the view's own."""
    return isinstance(error, StatementError) or not isinstance(error, StorageError)


def sentence(error: BaseException) -> str:
    """An error as `status` shows it."""
    return f"{type(error).__name__}: {error}"[:MAX_ERROR]


@contextmanager
def blaming(view: str) -> Iterator[None]:
    """Let what a view raises out as ours.

    Raises:
        ViewFailedError: its code failed. VaultError: as it was raised.
    """
    try:
        yield
    except Exception as e:
        if isinstance(e, VaultError) and not isinstance(e, StatementError):
            raise
        raise ViewFailedError(f"view {view} failed, the others go on: {sentence(e)}") from e
