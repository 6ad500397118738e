"""A chain as one file: how a newcomer gets all of it at once instead of block by block.

The bytes come from one member and prove nothing: what is unpacked is checked for names, sizes and the genesis block,
and every batch is judged as any other.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Final

from walytis_vault.adapters.walytis import upstream
from walytis_vault.adapters.walytis.recovery import begins_with_genesis
from walytis_vault.domain.errors import StorageError, TransportError, UntrustedInputError, VaultError

MAX_PACK: Final = 64 << 30
"""Bytes of a chain's files."""
MAX_FILES: Final = 20_000_000
MAX_RATIO: Final = 200
"""How much larger than the pack its files may be together."""
SMALL: Final = 4 << 20
"""Bytes of a file that is read into memory at once; zipfile refuses to give more than the entry says."""
WANTED_FOLDERS: Final = ("KnownBlocksIndex", "ReceivedBlocks")
WANTED_FILES: Final = ("Config.json", "IPFS-Peers.json")


def pack_chain(chain_id: str, target: Path) -> int:
    """Write a chain that this node runs into the file `target`; return its size in bytes.

    Raises:
        StorageError: it cannot be written. TransportError: upstream cannot pack it.
    """
    try:
        made = Path(upstream.api().get_blockchain_data(chain_id))
        try:
            shutil.move(made, target)
        finally:
            shutil.rmtree(made.parent, ignore_errors=True)
        target.chmod(0o600)
        return target.stat().st_size
    except VaultError:
        raise
    except OSError as e:
        raise StorageError(f"the chain cannot be packed: {e.strerror or e}") from e
    except Exception as e:  # upstream raises bare Exceptions
        raise TransportError(f"the chain cannot be packed: {e}") from e


def unpack_chain(chain_id: str, pack: Path) -> None:
    """Make upstream run the chain in a pack. Nothing happens when it has the chain already.

    Upstream's own way adds all files to IPFS as one folder and copies them out again: 2 s for a thousand blocks.
    What it takes for a chain is a folder, so the files go there; the blocks are added to IPFS in the background, as
    after any start.

    Raises:
        UntrustedInputError: the pack is malformed, or another chain. StorageError. TransportError.
    """
    if upstream.have_chain(chain_id):
        return
    check_pack(pack)
    target = upstream.chain_folder(chain_id)
    staged = target.parent / ".joining" / chain_id
    try:
        shutil.rmtree(staged.parent, ignore_errors=True)
        for folder in WANTED_FOLDERS:
            (staged / folder).mkdir(mode=0o700, parents=True)
        _extract(pack, staged)
        if not begins_with_genesis(staged):
            raise UntrustedInputError("the chain that was sent is not the one that the invitation names")
        staged.rename(target)
        staged.parent.rmdir()
    except OSError as e:
        raise StorageError(f"the chain cannot be unpacked: {e.strerror or e}") from e
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, RuntimeError, EOFError) as e:
        raise UntrustedInputError("the chain that was sent is damaged") from e
    try:
        upstream.load_chain(chain_id)
    except Exception as e:  # upstream raises bare Exceptions
        raise UntrustedInputError(f"the chain that was sent is damaged: {e}") from e


def _extract(pack: Path, target: Path) -> None:
    """Write the files of a chain that are in a pack. Made for very many small ones."""
    made: set[str] = set()
    with zipfile.ZipFile(pack) as opened:
        for entry in opened.infolist():
            name = entry.filename
            if entry.is_dir() or not _is_wanted(name):
                continue
            folder = name.rpartition("/")[0]
            if folder and folder not in made:
                (target / folder).mkdir(mode=0o700, exist_ok=True)
                made.add(folder)
            with open(f"{target}/{name}", "wb") as file:
                if entry.file_size <= SMALL:
                    file.write(opened.read(entry))
                else:
                    with opened.open(entry) as source:
                        shutil.copyfileobj(source, file)


def _is_wanted(name: str) -> bool:
    """Whether a file is one of those that make up a chain."""
    top, _, below = name.partition("/")
    return name in WANTED_FILES or (top in WANTED_FOLDERS and 0 < below.count("/") + 1 <= 2)


def check_pack(pack: Path) -> None:
    """Refuse names that leave the folder, links, and sizes that cannot be. Raises UntrustedInputError, StorageError."""
    try:
        size = pack.stat().st_size
        with zipfile.ZipFile(pack) as opened:
            entries = opened.infolist()
    except OSError as e:
        raise StorageError(f"the chain cannot be unpacked: {e.strerror or e}") from e
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as e:
        raise UntrustedInputError("the chain that was sent is no zip file") from e
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES or total > min(MAX_PACK, size * MAX_RATIO):
        raise UntrustedInputError("the chain that was sent is larger than any chain")
    for entry in entries:
        name = entry.filename
        parts = name.split("/")
        plain = not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name
        if not plain or (entry.external_attr >> 16) & 0o170000 == 0o120000:
            raise UntrustedInputError("the chain that was sent holds a file with a name that is no plain name")
