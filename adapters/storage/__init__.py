"""walytis_vault.adapters.storage."""

__all__: list[str] = []
