"""Cryptography: signatures, encryption of contents, sealing of small secrets. Specified in docs/wire-format-content.md.

Import from the modules: `from walytis_vault.adapters.crypto.signing import HybridSigner`.
"""

__all__: list[str] = []
