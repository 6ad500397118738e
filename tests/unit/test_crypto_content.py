"""Encryption of contents: padding, sizes, roots; and sealed texts."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walytis_vault.adapters.crypto.ciphertext_root import LeafHasher, leaf_hash, root_of, segment_count
from walytis_vault.adapters.crypto.content_cipher import (
    CHUNK_BYTES,
    ContentDecryptor,
    ContentEncryptor,
    ciphertext_length,
    content_context,
    padded_length,
)
from walytis_vault.adapters.crypto.descriptor import (
    PADDING_STEPS,
    Descriptor,
    open_descriptor,
    open_reason,
    seal_descriptor,
    seal_reason,
)
from walytis_vault.adapters.crypto.labels import join_parts
from walytis_vault.adapters.crypto.sealing import SEAL_OVERHEAD
from walytis_vault.domain.errors import DamagedContentError, MisuseError, UntrustedInputError, VaultError
from walytis_vault.domain.ids import ContentId, ContentKey
from walytis_vault.domain.limits import LIMITS, SEGMENT_BYTES

KEY, CONTENT_ID = ContentKey(bytes(range(32))), ContentId(bytes(16))


@given(st.integers(0, LIMITS.content))
def test_padding_hides_the_length(length: int) -> None:
    """The padded length is at least 256, at most 12 % more, and few bits of it are set freely."""
    padded = padded_length(length)
    assert padded >= max(length, 256)
    assert padded <= max(256, length * 1.12)
    assert padded_length(padded) == padded
    exponent = padded.bit_length() - 1
    assert padded % (1 << max(0, exponent - exponent.bit_length())) == 0


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_padding_keeps_the_order(a: int, b: int) -> None:
    """A longer content never looks shorter."""
    assert (padded_length(a) <= padded_length(b)) or a > b


@pytest.mark.parametrize("size", [256, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES])
def test_ciphertext_has_the_length_that_is_expected(size: int) -> None:
    """The length follows from the padded length, so that a reader can check it before it reads."""
    cipher = ContentEncryptor(KEY, b"")
    assert len(cipher.update(bytes(size)) + cipher.finish()) == ciphertext_length(size)


@given(st.lists(st.binary(max_size=20), max_size=4), st.lists(st.binary(max_size=20), max_size=4))
def test_joined_parts_are_unambiguous(a: list[bytes], b: list[bytes]) -> None:
    """Two lists of parts join to the same bytes only when they are the same list."""
    assert (join_parts(*a) == join_parts(*b)) == (a == b)


def test_the_context_binds_vault_author_and_content() -> None:
    """Each part of the context matters, and none can flow into its neighbour."""
    one = content_context("v", "alice", CONTENT_ID)
    assert one != content_context("va", "lice", CONTENT_ID)
    assert one != content_context("v", "alice", ContentId(bytes(15) + b"\x01"))


def test_every_flipped_byte_and_every_cut_is_refused() -> None:
    """No byte of a small ciphertext may change or miss; never a wrong byte comes out."""
    cipher = ContentEncryptor(KEY, b"context")
    good = cipher.update(b"a small content".ljust(256, b"\x00")) + cipher.finish()
    bad = [good[:i] + bytes([good[i] ^ 0x80]) + good[i + 1 :] for i in range(len(good))]
    bad += [good[:i] for i in range(len(good))] + [good + b"x", good + good]
    for data in bad:
        with pytest.raises(DamagedContentError):
            _decrypt(data)
    assert _decrypt(good).startswith(b"a small content")


def _decrypt(data: bytes) -> bytes:
    cipher = ContentDecryptor(KEY, b"context")
    return cipher.update(data) + cipher.finish()


def test_keys_have_one_length() -> None:
    """A key of another length is refused before anything is encrypted or decrypted."""
    for length in (0, 16, 31, 33):
        with pytest.raises(MisuseError):
            ContentEncryptor(bytes(length), b"")
        with pytest.raises(MisuseError):
            ContentDecryptor(bytes(length), b"")


@given(st.integers(1, 40), st.data())
def test_any_change_of_leaves_changes_the_root(count: int, data: st.DataObject) -> None:
    """Leaves that are swapped, dropped, doubled or changed, and another length, give another root."""
    leaves = [os.urandom(32) for _ in range(count)]
    length = count * SEGMENT_BYTES
    root = root_of(leaves, length)
    at = data.draw(st.integers(0, count - 1))
    changed = [
        [*leaves[:at], bytes(32), *leaves[at + 1 :]],
        leaves[:at] + leaves[at : at + 1] + leaves[at:],
        [*leaves[1:], leaves[0]] if count > 1 else [bytes(32)],
        leaves[:at] + leaves[at + 1 :] or [bytes(32)],
    ]
    assert all(root_of(other, length) != root for other in changed)
    assert root_of(leaves, length - 1) != root


def test_a_tree_is_not_a_leaf() -> None:
    """The root of two segments is not the root of one that contains their hashes (labels differ)."""
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert root_of([left, right], 64) != root_of([leaf_hash(left + right)], 64)


def test_no_bytes_have_a_root_too() -> None:
    """An empty ciphertext counts as one empty segment."""
    leaves, _ = LeafHasher().finish()
    assert leaves == [leaf_hash(b"")]
    assert [segment_count(n) for n in (0, 1, SEGMENT_BYTES, SEGMENT_BYTES + 1)] == [1, 1, 1, 2]


texts = st.text(max_size=60)


@given(texts, texts, st.lists(texts, max_size=5), st.integers(0, LIMITS.content), texts)
def test_descriptors_come_back(name: str, media_type: str, labels: list[str], length: int, note: str) -> None:
    """Any descriptor within the limits opens to what was sealed."""
    given_one = Descriptor(name=name, media_type=media_type, labels=tuple(labels), length=length, note=note)
    try:
        sealed = seal_descriptor(KEY, CONTENT_ID, given_one)
    except MisuseError:
        assert any(0xD800 <= ord(c) < 0xE000 for c in name + media_type + "".join(labels) + note)
        return
    assert open_descriptor(KEY, CONTENT_ID, sealed) == given_one


def test_names_of_many_lengths_look_alike() -> None:
    """A sealed descriptor has one of few sizes, so that the length of a name says little."""
    sizes = {len(seal_descriptor(KEY, CONTENT_ID, Descriptor(name="x" * n, length=1))) for n in range(0, 4097, 7)}
    assert sizes <= {step + SEAL_OVERHEAD for step in PADDING_STEPS}
    short = {len(seal_descriptor(KEY, CONTENT_ID, Descriptor(name="x" * n, length=1))) for n in range(120)}
    assert len(short) == 1


@pytest.mark.parametrize(
    "descriptor",
    [
        Descriptor(name="x" * 10_000, length=0),
        Descriptor(name="ü" * 2049, length=0),
        Descriptor(media_type="x" * 256, length=0),
        Descriptor(labels=("x",) * 65, length=0),
        Descriptor(labels=("x" * 257,), length=0),
        Descriptor(length=LIMITS.content + 1),
        Descriptor(length=-1),
        Descriptor(name="\ud800", length=0),
        Descriptor(note="x" * 20_000, length=0),
    ],
)
def test_descriptors_over_the_limits_are_refused(descriptor: Descriptor) -> None:
    """Oversized or invalid fields are refused with a sentence, before anything is sealed."""
    with pytest.raises(MisuseError, match=r".+"):
        seal_descriptor(KEY, CONTENT_ID, descriptor)


def test_every_flipped_byte_of_a_sealed_text_is_refused() -> None:
    """No byte of a sealed descriptor or reason may change, none may miss."""
    descriptor = seal_descriptor(KEY, CONTENT_ID, Descriptor(name="n", length=3))
    reason = seal_reason(KEY, CONTENT_ID, "because")
    for i in range(len(descriptor)):
        changed = descriptor[:i] + bytes([descriptor[i] ^ 1]) + descriptor[i + 1 :]
        for sealed in (changed, descriptor[:i]):
            with pytest.raises(UntrustedInputError):
                open_descriptor(KEY, CONTENT_ID, sealed)
    for i in range(1, len(reason)):
        changed = reason[:i] + bytes([reason[i] ^ 1]) + reason[i + 1 :]
        for sealed in (changed, reason[:i]):
            with pytest.raises(UntrustedInputError):
                open_reason(KEY, CONTENT_ID, sealed)
    assert open_reason(KEY, CONTENT_ID, reason) == "because"
    with pytest.raises(MisuseError):
        seal_reason(KEY, CONTENT_ID, "x" * 5000)


@given(st.binary(max_size=3000))
def test_garbage_is_refused_with_our_error(data: bytes) -> None:
    """Whatever bytes come as descriptor, reason or ciphertext: our error, nothing else."""
    for attempt in (open_descriptor, open_reason):
        if data:
            with pytest.raises(VaultError):
                attempt(KEY, CONTENT_ID, data)
    with pytest.raises(VaultError):
        _decrypt(data)
