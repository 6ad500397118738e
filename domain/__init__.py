"""The rules: events, decisions, folds and ports. No I/O, no clock, no threads.

Import from the modules: `from walytis_vault.domain.events import ContentPublished`.
"""

__all__: list[str] = []
