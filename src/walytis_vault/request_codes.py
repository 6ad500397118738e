"""What is kept of a request, so that a repetition is told from another request under the same id.

Of what the record says anyway, its digest. Of what the record holds sealed, only a code under a subkey of the
content's key: it dies with that key, and without the key nobody can hold a guess against it. Then a repetition
is no longer compared, and gets the kept reply. Format: docs/wire-format-content.md, "Codes of requests".
"""

from __future__ import annotations

import hmac
from typing import Final, Protocol

from walytis_vault.adapters.crypto.labels import REQUEST, SUBKEY_SALT
from walytis_vault.adapters.crypto.sealing import derive_subkey
from walytis_vault.bus.messages import RequestKey
from walytis_vault.domain.ids import ID_BYTES, ContentId, ContentKey

VERSION: Final = b"\x01"
DIGEST_BYTES: Final = 32


class Keys(Protocol):
    """Where content keys are looked up."""

    def content_key(self, content_id: ContentId) -> ContentKey | None:
        """The content's key, None when it is not here. Raises LockedError, StorageError."""
        ...


def keep(key: RequestKey, content_id: ContentId | None = None, content_key: ContentKey | None = None) -> bytes:
    """What is kept of a request whose sealed part is about a content; without its key, of the rest alone."""
    told = VERSION + key.digest
    if not key.sealed or content_id is None or content_key is None:
        return told
    return told + content_id + _code(content_key, key)


def is_same(key: RequestKey, kept: bytes, keys: Keys | None) -> bool:
    """Whether what was kept may be of this request: False only when they differ for certain.

    Args:
        keys: None for a request that has nothing sealed.
    Raises:
        LockedError: that can be told only with the content's key. StorageError.
    """
    told, rest = kept[: 1 + DIGEST_BYTES], kept[1 + DIGEST_BYTES :]
    if kept[:1] != VERSION:
        return True
    if not hmac.compare_digest(told, VERSION + key.digest):
        return False
    if not rest or keys is None:
        return True
    content_key = keys.content_key(ContentId(rest[:ID_BYTES]))
    return content_key is None or hmac.compare_digest(rest[ID_BYTES:], _code(content_key, key))


def _code(content_key: ContentKey, key: RequestKey) -> bytes:
    return hmac.digest(derive_subkey(content_key, salt=SUBKEY_SALT, info=REQUEST), key.sealed, "sha256")
