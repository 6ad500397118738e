"""docs/wire-format-content.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

from walytis_vault.adapters.crypto import ciphertext_root, content_cipher, descriptor, labels, passphrase
from walytis_vault.adapters.storage import ballast, content_writer, index, packs, slots, vault_keys

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire-format-content.md").read_text()


def test_the_labels_are_those_of_the_document() -> None:
    """Every label of the code is in the document's table, and no other."""
    code = {v.rstrip(b"\x00").decode() for v in vars(labels).values() if isinstance(v, bytes)}
    table = set(re.findall(r"^\| `(walytis-vault/[^`]+)` \|", DOCUMENT, flags=re.M))
    assert code == table
    assert all(label.endswith("/v1") for label in code)


def test_the_numbers_are_those_of_the_document() -> None:
    """Versions and sizes that the document names are the code's."""
    assert DOCUMENT.startswith("# Formats of content at rest, version 1")
    assert (vault_keys.MASTER_VERSION, slots.SLOT_VERSION, index.INDEX_VERSION) == (1, 1, "1")
    assert str(descriptor.PADDING_STEPS)[1:-1] in DOCUMENT
    for number, sentence in [
        (content_cipher.HEADER_BYTES, "`56 + p"),
        (content_cipher.PADDING_FLOOR, "256 for `n <= 256`"),
        (ciphertext_root.LEAF_BYTES, "leaf hashes, 32 bytes each"),
        (slots.SLOT_BYTES, "`4096 + 128 i`"),
        (slots.HEADER_BYTES, "4096 bytes of header"),
        (content_writer.SMALL_BYTES >> 10, "exceeds 64 KiB"),
        (packs.PACK_BYTES >> 20, "beyond 16 MiB"),
        (ballast.BALLAST_BYTES >> 20, "`ballast` is 4 MiB"),
        (passphrase.MIN_MEMORY_KIB, "`memory_kib` (65,536 to"),
        (passphrase.MAX_MEMORY_KIB, "1,048,576)"),
        (passphrase.MIN_ITERATIONS, "`iterations` (3 to 32)"),
        (passphrase.MAX_LANES, "`lanes` (1 to 16)"),
    ]:
        assert sentence in DOCUMENT, sentence
        assert f"{number:,}" in sentence or str(number) in sentence, sentence


def test_packs_are_compacted_at_half() -> None:
    """The share of waste that the document names is the code's."""
    assert packs.MAX_WASTE == 0.5
    assert "more than\nhalf of waste" in DOCUMENT
