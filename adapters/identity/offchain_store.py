"""Reads the store of walytis_offchain 0.5.4 (the system that this one replaces), from its files alone.

No node runs, nothing is fetched, nothing is written into the store: key stores are read from copies. For a process
of its own, which `prepare` fits out: the old libraries' key classes are used, without the rest of them.
What a block says about its author and time is what its writer claimed; nobody vouches for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from walytis_vault.adapters.walytis import block_ids, post_quantum, quiet, unixfs
from walytis_vault.domain.errors import MisuseError, StorageError, UntrustedInputError, VaultError

CONTENT_FILE: Final = "BlockContent.db"
KEYS_FILE: Final = "BlockContentDbKeys.json"
BLOCKS_FOLDER: Final = "ReceivedBlocks"
DEPTH: Final = 4
"""How many folders below the one that was named are looked into."""
MAX_KEY_FILE: Final = 64 << 20
LIBRARY: Final = "walytis_identities"


class OldBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One block of the store."""

    block: str
    """IPFS content id of the block on its chain: names it for ever."""
    chain: str
    time: str | None
    """ISO 8601 (UTC), as its id claims."""
    author: str | None
    """DID, as the block claims; None when the block's file is not here."""
    topics: tuple[str, ...]
    content: bytes | None
    """None when it cannot be read."""
    problem: str | None = None


class OldStore(msgspec.Struct, frozen=True, kw_only=True):
    """Where the parts of a store lie."""

    content: Path
    """The folder of one chain's contents; its name is the chain's id."""
    group_keys: Path
    """Key store of the group identity."""
    key: Path
    """The key that opens the group's key store: JSON as `Key.serialise_private` gives it."""
    blocks: Path | None
    """The chain's folder of block files, for the authors; None when it is not here."""


def find_store(source: Path, *, group_keys: Path | None, key: Path, blocks: Path | None) -> OldStore:
    """Find the parts of a store below a folder.

    Raises:
        MisuseError: a part is missing, or there are several; the message says which.
    """
    content = _only(source, CONTENT_FILE, "SOURCE").parent
    keys = group_keys or _only(source, "group.json", "--group-keys")
    for path in (keys, key, content / KEYS_FILE):
        if not path.is_file():
            raise MisuseError(f"{path}: there is no such file")
    chain = content.name
    if blocks is None:
        found = [p for p in _below(source, BLOCKS_FOLDER) if p.parent.name == chain]
        folder = found[0] if found else None
    else:
        folder = next((p for p in (blocks, blocks / BLOCKS_FOLDER, blocks / chain / BLOCKS_FOLDER) if p.is_dir()), None)
        if folder is None:
            raise MisuseError(f"{blocks}: there are no blocks of chain {chain}")
    return OldStore(content=content, group_keys=keys, key=key, blocks=folder)


def _only(source: Path, name: str, option: str) -> Path:
    if not source.is_dir():
        raise MisuseError(f"{source}: there is no such folder")
    found = _below(source, name)
    if len(found) != 1:
        raise MisuseError(f"{source} holds {len(found)} files named {name}: name the right one with {option}")
    return found[0]


def _below(source: Path, name: str) -> list[Path]:
    patterns = ("*/" * depth + name for depth in range(DEPTH))
    return sorted({path for pattern in patterns for path in source.glob(pattern)})


def prepare(temporary: Path) -> None:
    """Fit out this process: quiet, with post-quantum keys, and without starting a node at an import."""
    quiet.hush(temporary)
    post_quantum.install()
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None or spec.submodule_search_locations is None:
        raise MisuseError(f"{LIBRARY} is not installed: install walytis-vault with its dependencies")
    # The package itself starts an IPFS node when it is imported; its modules for keys do not need one.
    package = types.ModuleType(LIBRARY)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault(LIBRARY, package)


def read_store(store: OldStore, temporary: Path) -> Iterator[OldBlock]:
    """Every block of the store, oldest first by what their ids claim. Call `prepare` first.

    Raises:
        MisuseError: the key does not open it. StorageError: it is damaged.
    """
    keys = _open_keys(store, temporary)
    blocks = _block_files(store.blocks)
    for block_id in _ids(store.content / CONTENT_FILE):
        yield _block(store, keys, blocks, block_id)


def _open_keys(store: OldStore, temporary: Path) -> Any:
    try:
        for path, name in ((store.group_keys, "group.json"), (store.content / KEYS_FILE, "content.json")):
            if path.stat().st_size > MAX_KEY_FILE:
                raise MisuseError(f"{path} is larger than any key store")
            shutil.copyfile(path, temporary / name)
        raw = store.key.read_bytes()[: 1 << 20]
    except OSError as e:
        raise StorageError(f"the key stores cannot be read: {e.strerror or e}") from e
    key_class = importlib.import_module(f"{LIBRARY}.key_objects").Key
    store_class = importlib.import_module(f"{LIBRARY}.key_store").KeyStore
    try:
        group = store_class(str(temporary / "group.json"), key_class.deserialise_private(msgspec.json.decode(raw)))
        return store_class(str(temporary / "content.json"), group)
    except Exception as e:  # the library raises bare Exceptions
        raise MisuseError(f"{store.key} does not open {store.group_keys}: {type(e).__name__}") from e


def _connect(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)


def _ids(path: Path) -> list[bytes]:
    try:
        connection = _connect(path)
        try:
            rows: list[Any] = connection.execute("SELECT block_id FROM BlockContent").fetchall()
        finally:
            connection.close()
    except apsw.Error as e:
        raise StorageError(f"{path} cannot be read: {e}") from e
    return sorted((bytes(row[0]) for row in rows), key=lambda i: (_time(i) or "", i))


def _block(store: OldStore, keys: Any, blocks: dict[str, Path], block_id: bytes) -> OldBlock:
    chain, cid, topics = store.content.name, "", list[str]()
    try:
        cid, topics = block_ids.cid_of(block_id), block_ids.topics_of(block_id)
        content, problem = _content(store.content / CONTENT_FILE, keys, block_id), None
    except VaultError as e:
        content, problem = None, str(e)
    # The first topic is the layer's own name, the last the chain's id.
    plain = tuple(topic for topic in topics[1:] if topic != chain)
    author = _author(blocks.get(cid), block_id)
    return OldBlock(
        block=cid, chain=chain, time=_time(block_id), author=author, topics=plain, content=content, problem=problem
    )


def _content(path: Path, keys: Any, block_id: bytes) -> bytes:
    try:
        connection = _connect(path)
        try:
            sql = "SELECT content, key_id FROM BlockContent WHERE block_id = ?"
            rows: list[Any] = connection.execute(sql, (block_id,)).fetchall()
        finally:
            connection.close()
        ((sealed, key_id),) = rows
        return bytes(keys.get_keygroup(key_id).decrypt(sealed))
    except Exception as e:  # the library raises bare Exceptions
        raise UntrustedInputError(f"its content cannot be decrypted: {type(e).__name__}") from e


def _block_files(folder: Path | None) -> dict[str, Path]:
    return {path.name: path for path in folder.glob("*/*") if path.is_file()} if folder is not None else {}


def _author(path: Path | None, block_id: bytes) -> str | None:
    """The DID in the block that stands for the content on the chain."""
    if path is None:
        return None
    try:
        if path.stat().st_size > unixfs.MAX_FILE_BYTES:
            return None
        said = block_ids.content_of(path.read_bytes(), block_id)
        did = said[: said.index(0)].decode("ascii")
    except (OSError, ValueError, VaultError):
        return None
    return did if did.startswith("did:") and did.isprintable() and len(did) <= 512 else None


def _time(block_id: bytes) -> str | None:
    try:
        moment = block_ids.time_of(block_id)
    except UntrustedInputError:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
