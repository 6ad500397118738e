"""Upstream's own functions, loaded without starting a node, to hold our replacements against.

`walytis_beta.block_records` imports the running IPFS node for functions that are not looked at here; its package is
loaded under another name with that one import replaced by a stub, the rest is upstream's code unchanged.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from walytis_vault.adapters.walytis import quiet

_PACKAGE = "walytis_beta_original"


def load(log_folder: Path) -> tuple[Any, Any]:
    """Return upstream's modules block_ancestry and block_records."""
    quiet.hush(log_folder)
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec("walytis_beta_tools")
        assert spec is not None
        assert spec.origin is not None
        package: Any = types.ModuleType(_PACKAGE)
        package.__path__ = [str(Path(spec.origin).parents[1] / "walytis_beta")]
        sys.modules[_PACKAGE] = package
        networking: Any = types.ModuleType(f"{_PACKAGE}.networking")
        networking.IPFS_PIN_CACHE_AGE_SEC = 300
        networking.ipfs = None
        sys.modules[f"{_PACKAGE}.networking"] = networking
    ancestry = importlib.import_module(f"{_PACKAGE}.block_ancestry")
    records = importlib.import_module(f"{_PACKAGE}.block_records")
    quiet.hush_loggers()
    return ancestry, records
