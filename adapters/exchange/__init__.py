"""walytis_vault.adapters.exchange."""

__all__: list[str] = []
