"""walytis_vault.adapters."""

__all__: list[str] = []
