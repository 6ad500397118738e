"""walytis_vault.adapters.walytis."""

__all__: list[str] = []
