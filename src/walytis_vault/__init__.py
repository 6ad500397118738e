"""walytis-vault: encrypted content shared by the members of one Walytis Identity, with a lasting record.

`Node` runs a vault's node, `Client` and `AsyncClient` talk to one, `VaultError` is the root of all errors. Without a
node: `verify_bundle` checks an export, `restore_backup` makes a home of a backup; `import_offchain` moves in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from walytis_vault.domain.errors import (
    AlreadyRunningError,
    BusyError,
    ConflictError,
    DamagedContentError,
    ExpiredRequestError,
    ForgottenError,
    LockedError,
    MisuseError,
    NewerVersionError,
    NoNodeError,
    NotYetAvailableError,
    PermissionRefusedError,
    ProtocolVersionError,
    RetractedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    TimedOutError,
    TransportError,
    UnknownIdError,
    UntrustedInputError,
    VaultError,
    ViewFailedError,
    WrongPassphraseError,
)

if TYPE_CHECKING:
    from walytis_vault.async_client import AsyncClient
    from walytis_vault.backup.restore import restore_backup
    from walytis_vault.bundle.verify import verify_bundle
    from walytis_vault.client import Client
    from walytis_vault.node import Node
    from walytis_vault.offchain import import_offchain

__all__ = [
    "AlreadyRunningError",
    "AsyncClient",
    "BusyError",
    "Client",
    "ConflictError",
    "DamagedContentError",
    "ExpiredRequestError",
    "ForgottenError",
    "LockedError",
    "MisuseError",
    "NewerVersionError",
    "NoNodeError",
    "Node",
    "NotYetAvailableError",
    "PermissionRefusedError",
    "ProtocolVersionError",
    "RetractedError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "TimedOutError",
    "TransportError",
    "UnknownIdError",
    "UntrustedInputError",
    "VaultError",
    "ViewFailedError",
    "WrongPassphraseError",
    "import_offchain",
    "restore_backup",
    "verify_bundle",
]

_LAZY = {
    "Node": "node",
    "Client": "client",
    "AsyncClient": "async_client",
    "restore_backup": "backup.restore",
    "verify_bundle": "bundle.verify",
    "import_offchain": "offchain",
}


def __getattr__(name: str) -> Any:
    """Import these at first use, so that the command line starts quickly."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"walytis_vault.{_LAZY[name]}"), name)
