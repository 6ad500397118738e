"""Where a PostgreSQL database is: a URL taken apart, stored without its password, and shown to people.

Everything that a URL leaves out comes from libpq's own sources: PGHOST and the like, the password from PGPASSWORD or
`.pgpass`. It opens no connection.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from walytis_vault.domain.errors import MisuseError

SCHEMES: Final = ("postgresql", "postgres")
MAX_URL: Final = 2000
"""Characters."""
_SECRETS: Final = ("password", "sslpassword", "passfile", "oauth_client_secret")
DEFAULTS: Final[dict[str, Any]] = {
    # A server that went away without a word is noticed within half a minute, not within two hours.
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "walytis-vault",
}


def without_password(url: str) -> str:
    """The URL as it may be stored and shown.

    Raises:
        MisuseError: not a PostgreSQL URL.
    """
    try:
        if len(url) > MAX_URL or not url.isprintable() or " " in url:
            raise ValueError
        split = urlsplit(url)
        if split.scheme not in SCHEMES or split.fragment or not url.startswith(f"{split.scheme}://"):
            raise ValueError
        account, at, host = split.netloc.rpartition("@")
        query = [(k, v) for k, v in parse_qsl(split.query, True, True) if k not in _SECRETS]
    except ValueError as e:
        raise MisuseError("views are kept in `sqlite`, or at a URL such as postgresql://user@host:5432/database") from e
    user = account.partition(":")[0]
    options = f"?{urlencode(query, quote_via=quote, safe='/')}" if query else ""
    return f"postgresql://{user}{at}{host}{split.path}{options}"


def schema_of(vault_id: str, device: str) -> str:
    """The schema for the views of one node. Positions are a node's own, so two nodes never share one."""
    return "vault_" + hashlib.sha256(f"{len(vault_id)}:{vault_id}{device}".encode()).hexdigest()[:24]
