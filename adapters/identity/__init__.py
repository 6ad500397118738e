"""The identity of this node, on walytis_identities: device DID, group identity, certificates.

Import from here: `from walytis_vault.adapters.identity import IdentityKeeper`.
"""

from walytis_vault.adapters.identity.keeper import IdentityKeeper, check_certificate
from walytis_vault.adapters.identity.store_key import new_store_key

__all__ = ["IdentityKeeper", "check_certificate", "new_store_key"]
