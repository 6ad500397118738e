"""Every error that may leave walytis-vault.

One root, `VaultError`, and one branch for each thing a caller can do about it. Each class has a stable
`code` that travels over the bus, so that a client raises the same class that the node raised.
Boundaries convert everything else (`raise X from e`); messages are sentences for people that say what to do.
"""

from __future__ import annotations

from typing import ClassVar


class VaultError(Exception):
    """Root of all errors of walytis-vault."""

    code: ClassVar[str] = "vault"


class MisuseError(VaultError):
    """The caller asked for something that cannot work: correct the call."""

    code = "misuse"


class UnknownIdError(MisuseError):
    """No content, ballot, member or view has this id."""

    code = "unknown-id"


class ConflictError(MisuseError):
    """The call contradicts what is already recorded (for example a request id used for another body)."""

    code = "conflict"


class ExpiredRequestError(ConflictError):
    """The request took effect so long ago that its reply is no longer kept. It did not take effect again."""

    code = "expired-request"


class PermissionRefusedError(MisuseError):
    """The key of this client does not allow the verb, or only the author may do this."""

    code = "permission-refused"


class WrongPassphraseError(MisuseError):
    """The passphrase (or key file) does not open this vault."""

    code = "wrong-passphrase"


class LockedError(MisuseError):
    """The vault is sealed: unlock it first."""

    code = "locked"


class UntrustedInputError(VaultError):
    """Bytes from outside are malformed, too large, or do not verify. They were not applied."""

    code = "untrusted-input"


class NewerVersionError(UntrustedInputError):
    """A newer walytis-vault wrote this: it is looked at again after an upgrade."""

    code = "newer-version"


class StorageError(VaultError):
    """The disk refused: full, damaged, unwritable. Nothing was acknowledged."""

    code = "storage"


class StorageFullError(StorageError):
    """No space left. Free some, then repeat; reading and forgetting still work."""

    code = "storage-full"


class StorageUnavailableError(StorageError):
    """The database server that keeps the views cannot be reached now. The node tries again by itself: repeat later."""

    code = "storage-unavailable"


class DamagedContentError(StorageError):
    """Stored bytes of a content do not match its record. They were not served."""

    code = "damaged-content"


class ViewFailedError(VaultError):
    """A view's own code failed, mostly that of an installed package. Other views are not concerned."""

    code = "view-failed"


class TransportError(VaultError):
    """The node or a peer could not be reached, or answered outside the protocol."""

    code = "transport"


class NoNodeError(TransportError):
    """No node serves this home: start one with `walytis-vault serve`."""

    code = "no-node"


class AlreadyRunningError(TransportError):
    """Another node already runs on this home."""

    code = "already-running"


class ProtocolVersionError(TransportError):
    """Client and node speak different versions of the bus protocol."""

    code = "protocol-version"


class BusyError(TransportError):
    """A limit on what may be in flight was reached: repeat later, with less at once."""

    code = "busy"


class NotYetAvailableError(VaultError):
    """What was asked for exists but is not here yet, or the wait ran out of time."""

    code = "not-yet-available"


class TimedOutError(NotYetAvailableError):
    """No answer within the timeout. The request may still take effect: retry with the same request id."""

    code = "timeout"


class ForgottenError(VaultError):
    """The content was forgotten, or retracted, and will never come back. Its record remains."""

    code = "forgotten"


class RetractedError(ForgottenError):
    """The author retracted the content: it is hidden, not yet erased."""

    code = "retracted"


def _all_errors(root: type[VaultError]) -> dict[str, type[VaultError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_all_errors(child))
    return found


ERRORS_BY_CODE: dict[str, type[VaultError]] = _all_errors(VaultError)
"""Stable wire code -> class. Built once, when the module is imported."""


def error_from_code(code: str, message: str) -> VaultError:
    """Return the error that a node reported; an unknown code becomes a plain `VaultError`."""
    return ERRORS_BY_CODE.get(code, VaultError)(message)
