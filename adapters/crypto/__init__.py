"""walytis_vault.adapters.crypto."""

__all__: list[str] = []
