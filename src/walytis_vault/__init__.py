"""walytis-vault: encrypted content shared by the members of one Walytis Identity."""

__all__: list[str] = []
