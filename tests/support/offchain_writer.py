"""Makes a real store of walytis_offchain 0.5.4: `python -m support.offchain_writer HOME CONTENT...`.

In a process of its own, since the embedded Walytis node cannot be stopped quickly. Prints one JSON line for each
block: its id on the chain, the author's DID, and the time that upstream gives it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path


def main(home: Path, contents: list[str]) -> None:
    """Write the blocks."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in ("vault", "content"):
        (home / name).mkdir(parents=True)
    os.chdir(home)
    os.environ["PRIVATE_BLOCKS_DATA_DIR"] = str(home / "content")
    from walytis_vault.adapters.walytis.runtime import WalytisRuntime

    WalytisRuntime.start(home / "vault")
    identities = importlib.import_module("walytis_identities")
    keys = importlib.import_module("walytis_identities.key_objects")
    store = importlib.import_module("walytis_identities.key_store").KeyStore
    key = keys.Key.create("EC-secp256k1")
    device = identities.DidManager.create(store(str(home / "device.json"), key))
    group = identities.GroupDidManager.create(store(str(home / "group.json"), key), device)
    chain = importlib.import_module("walytis_offchain").PrivateBlockchain(group)
    (home / "key.json").write_text(json.dumps(key.serialise_private()))
    for number, content in enumerate(contents):
        block = chain.add_block(content.encode(), topics=[f"topic {number}"])
        said = {"block": block.ipfs_cid, "author": device.did, "time": block.creation_time.isoformat()}
        out.write(json.dumps(said) + "\n")
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
