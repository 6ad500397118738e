"""walytis_vault.projections."""

__all__: list[str] = []
