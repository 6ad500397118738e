"""Backups: a consistent, sealed copy of a home, taken while its node runs, that forgets again when it is restored.

`take` writes one, `restore` makes a home of one, `coming_back` brings a restored node up to date before it serves.
Reasons: docs/adr/0014-backup.md.
"""

__all__: list[str] = []
