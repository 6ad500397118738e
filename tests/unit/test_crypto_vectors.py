"""The vectors of our formats at rest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.content_stores import open_store
from vectors.c2sp_reference import CHUNK, encrypt, seal_chunks
from vectors.make_content_vectors import CONTENT_ID, FILE, KEY, SALT, context, make, stream
from walytis_vault.adapters.crypto.ciphertext_root import LeafHasher
from walytis_vault.adapters.crypto.content_cipher import ContentDecryptor, ContentEncryptor, content_context
from walytis_vault.adapters.crypto.descriptor import open_descriptor, open_reason
from walytis_vault.adapters.storage.slots import HEADER_BYTES, SLOT_BYTES, SlotFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.ids import ContentId, ContentKey, Root
from walytis_vault.domain.limits import SEGMENT_BYTES

VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text())["vectors"]


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(v, id=v["name"]) for v in VECTORS if v["kind"] == kind]


def code_of(error: VaultError) -> str:
    return type(error).code


def test_the_committed_vectors_are_what_the_generator_makes() -> None:
    """Vectors and generator agree."""
    assert FILE.read_text() == make()


def ciphertext_of(vector: dict[str, Any]) -> bytes:
    if vector["ciphertext"] is not None:
        return bytes.fromhex(vector["ciphertext"])
    recipe = vector["recipe"]
    if recipe[0] == "zeros":
        return encrypt(KEY, SALT, context(), bytes(recipe[1]))
    message = stream("content", 2 * CHUNK + 256)
    header, *chunks = seal_chunks(KEY, SALT, context(), [message[i : i + CHUNK] for i in range(0, len(message), CHUNK)])
    return header + b"".join(chunks[i] for i in recipe[1:])


@pytest.mark.parametrize("step", [1 << 20, 4099, 17])
@pytest.mark.parametrize("vector", of_kind("content"))
def test_content(vector: dict[str, Any], step: int) -> None:
    """A content opens, or gives the error that its one defect asks for, however it is cut into calls."""
    data = ciphertext_of(vector)
    assert hashlib.sha256(data).hexdigest() == vector["ciphertext_sha256"]
    bound_to = content_context(vector["vault_id"], vector["author"], ContentId(bytes.fromhex(vector["content_id"])))
    cipher = ContentDecryptor(bytes.fromhex(vector["key"]), bound_to)

    def decrypt() -> bytes:
        pieces = [cipher.update(data[i : i + step]) for i in range(0, len(data), step)]
        return b"".join(pieces) + cipher.finish()

    if vector["error"] is None:
        assert hashlib.sha256(decrypt()).hexdigest() == vector["plaintext_sha256"]
    else:
        with pytest.raises(VaultError) as caught:
            decrypt()
        assert code_of(caught.value) == vector["error"]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 300 * CHUNK])
def test_our_encryption_is_the_specification(size: int) -> None:
    """Under the salt that our encryption chose, the specification gives the same bytes (also beyond 256 chunks)."""
    message = stream("message", size)
    cipher = ContentEncryptor(KEY, b"any context")
    found = cipher.update(message) + cipher.finish()
    assert found == encrypt(KEY, found[:24], b"any context", message)


@pytest.mark.parametrize("vector", of_kind("root"))
def test_root(vector: dict[str, Any], tmp_path: Path) -> None:
    """The root over segments of 1 MiB, in whatever pieces the bytes come; a root made wrongly takes no bytes."""
    data = stream(vector["seed"], vector["length"])
    root = Root(bytes.fromhex(vector["root"]))
    for step in (1 << 20, 700_001, len(data)):
        hasher = LeafHasher()
        for start in range(0, len(data), step):
            hasher.update(memoryview(data)[start : start + step])
        leaves, found = hasher.finish()
        assert (found == root) == (vector["error"] is None)

    def receive() -> None:
        if not receiver.has_leaves:
            receiver.set_leaves(leaves)
        for number in receiver.missing():
            receiver.write_segment(number, data[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES])

    store = open_store(tmp_path)
    receiver = store.begin_ciphertext(ContentId(CONTENT_ID), root, len(data))
    if vector["error"] is None:
        receive()
        assert receiver.missing() == []
    else:
        with pytest.raises(VaultError) as caught:
            receive()
        assert code_of(caught.value) == vector["error"]
        assert receiver.missing() == list(range(len(leaves)))
    receiver.close()
    store.close()


@pytest.mark.parametrize("vector", of_kind("descriptor"))
def test_descriptor(vector: dict[str, Any]) -> None:
    """A descriptor opens to its fields, or gives the error of its one defect."""
    key, sealed = ContentKey(bytes.fromhex(vector["key"])), bytes.fromhex(vector["sealed"])
    if vector["error"] is None:
        opened = msgspec.to_builtins(open_descriptor(key, ContentId(CONTENT_ID), sealed))
        assert {**opened, "labels": list(opened["labels"])} == vector["opened"]
    else:
        with pytest.raises(VaultError) as caught:
            open_descriptor(key, ContentId(CONTENT_ID), sealed)
        assert code_of(caught.value) == vector["error"]


@pytest.mark.parametrize("vector", of_kind("reason"))
def test_reason(vector: dict[str, Any]) -> None:
    """A reason opens to its text, or gives the error of its one defect."""
    key, sealed = ContentKey(bytes.fromhex(vector["key"])), bytes.fromhex(vector["sealed"])
    if vector["error"] is None:
        assert open_reason(key, ContentId(CONTENT_ID), sealed) == vector["opened"]
    else:
        with pytest.raises(VaultError) as caught:
            open_reason(key, ContentId(CONTENT_ID), sealed)
        assert code_of(caught.value) == vector["error"]


@pytest.mark.parametrize("vector", of_kind("slot"))
def test_slot(vector: dict[str, Any], tmp_path: Path) -> None:
    """A slot opens to content id and key; one with a defect reads as empty."""
    fs = OsFileSystem()
    keys = VaultKeys(tmp_path, fs, bytes.fromhex(vector["master"]))
    slots = SlotFile(tmp_path / "keys.slots", fs, keys, vector["vault_id"])
    slots.use([])
    slots.take(vector["slot"] + 1)
    with (tmp_path / "keys.slots").open("r+b") as file:
        file.seek(HEADER_BYTES + vector["slot"] * SLOT_BYTES)
        file.write(bytes.fromhex(vector["bytes"]))
    found = slots.read(vector["slot"])
    slots.close()
    expected = vector["key"] and (bytes.fromhex(vector["content_id"]), bytes.fromhex(vector["key"]))
    assert found == expected
