"""walytis_vault.bus."""

__all__: list[str] = []
