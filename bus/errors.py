"""Turns whatever a service call raises into an error that may travel: ours as it is, anything else hidden.

The text of a foreign exception may hold paths or content, so it goes to the log and never to a client.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from walytis_vault.domain.errors import StorageFullError, VaultError

_log = logging.getLogger(__name__)


@contextmanager
def shield(on_error: Callable[[VaultError], None]) -> Iterator[None]:
    """Run a block of a worker; report its error as a VaultError. Nothing is raised."""
    try:
        yield
    except VaultError as e:
        on_error(e)
    except MemoryError:
        on_error(StorageFullError("the node is out of memory: repeat later"))
    except Exception:
        _log.exception("bus: a service call failed unexpectedly")
        on_error(VaultError("the node met an internal error; its log has the details"))
