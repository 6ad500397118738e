"""`python -m walytis_vault` is `walytis-vault`."""

from __future__ import annotations

from walytis_vault.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
