"""Storage on this machine: SQLite, keys and secrets, and the content store. Specified in docs/wire-format-content.md.

Import from the modules: `from walytis_vault.adapters.storage.content_store import DiskContentStore`.
"""

__all__: list[str] = []
