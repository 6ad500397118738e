"""walytis_vault.adapters.identity."""

__all__: list[str] = []
