"""Puts blocks where kubo's blockstore and upstream look for them, without asking kubo.

Kubo's `AddFile` pins, flushes a root folder and syncs a database for each call: 6-14 ms of a block's 8-13 ms. A
block becomes one to six nodes whose names and bytes are fixed by a specification, so they are written into the
flatfs datastore directly. `self_test` proves, on each start, that this kubo finds what is written so and names it
alike; where it does not, `AddFile` is used.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from walytis_vault.adapters.walytis import unixfs
from walytis_vault.adapters.walytis.files import storage_error
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.faults import fault

SHARDING: Final = "/repo/flatfs/shard/v1/next-to-last/2"


class BlockStore:
    """The flatfs datastore of one repository."""

    def __init__(self, repository: Path) -> None:
        """Name the repository. Nothing is touched."""
        self._folder = repository / "blocks"
        self._made: set[str] = set()

    def put(self, file_data: bytes) -> str:
        """Store a file. Not synced: after a power cut `recovery` drops what is torn.

        Returns:
            Its content id.
        Raises:
            StorageError, StorageFullError: nothing, or only unreferenced nodes, were stored.
        """
        return self.put_nodes(unixfs.nodes_of(file_data))

    def put_nodes(self, nodes: Sequence[unixfs.Node]) -> str:
        """Store the nodes of a file, the root last. See `put`."""
        try:
            for node in nodes:
                self._put_node(node)
        except OSError as e:
            raise storage_error(e, f"store a block in {self._folder}") from e
        return unixfs.text_of(nodes[-1].multihash)

    def has(self, file_data: bytes) -> bool:
        """Whether all nodes of a file are stored."""
        return all((self._folder / Path(*unixfs.flatfs_name(n.multihash))).exists() for n in unixfs.nodes_of(file_data))

    def get(self, cid: str) -> bytes:
        """Read a stored file back, with the node running or not.

        Raises:
            UntrustedInputError: it is not stored, or damaged.
        """

        def node_of(multihash: bytes) -> bytes:
            try:
                return (self._folder / Path(*unixfs.flatfs_name(multihash))).read_bytes()
            except OSError as e:
                raise UntrustedInputError(f"{cid} is not stored") from e

        return unixfs.file_of(cid, node_of)

    def _put_node(self, node: unixfs.Node) -> None:
        shard, name = unixfs.flatfs_name(node.multihash)
        folder = self._folder / shard
        if shard not in self._made:
            folder.mkdir(exist_ok=True)
            self._made.add(shard)
        write_whole(folder / name, node.data)

    def self_test(self, node: Any) -> bool:
        """Whether the running kubo names files as we do and reads what we store.

        Args:
            node: upstream's IpfsNode on the same repository.
        """
        try:
            if (self._folder / "SHARDING").read_text().strip() != SHARDING:
                return False
            sample = secrets.token_bytes(64)
            cid = self.put(sample)
            return bool(node.files.read(cid) == sample)
        except Exception:  # whatever is wrong with the short cut, the long way remains
            return False


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, then rename it: a killed process leaves all or nothing. Raises OSError."""
    temporary = f"{path.parent}/temp-{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    fault("blocks.before_rename")
    os.rename(temporary, path)
