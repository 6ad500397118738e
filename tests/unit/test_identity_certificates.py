"""Certificates and control-key histories, judged from bytes alone, with real keys and no node."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from hypothesis import given, settings
from hypothesis import strategies as st

from walytis_vault.adapters.identity import certificates, new_store_key
from walytis_vault.adapters.identity.group import parse_invitation
from walytis_vault.adapters.identity.guards import checked_challenge, checked_file_name
from walytis_vault.adapters.identity.store_key import parse_store_key
from walytis_vault.domain.errors import MisuseError, UntrustedInputError


class Keys:
    """The control keys of somebody, with their private halves."""

    def __init__(self) -> None:
        self._ec = ec.generate_private_key(ec.SECP256K1())
        self._pq = mldsa.MLDSA65PrivateKey.generate()
        point = self._ec.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        kem = bytes(certificates.KEM_768_PUBLIC_BYTES)
        parts = (point, kem + self._pq.public_key().public_bytes_raw())
        time = "2026.11.22_12.00.00.000000"
        self.key_id = "".join(
            f"|{family}:{time}:{public.hex()}" for family, public in zip(certificates.FAMILIES, parts, strict=True)
        )

    def sign(self, message: bytes) -> list[bytes]:
        """One signature of each family."""
        return [self._ec.sign(message, ec.ECDSA(hashes.SHA256())), self._pq.sign(message)]

    def certify(self, statement: bytes) -> bytes:
        """A certificate."""
        return certificates.encode(self.key_id, self.sign(certificates.LABEL + statement))


def update(old: Keys, new: Keys, signer: Keys | None = None) -> bytes:
    """A control-key block as upstream writes it."""
    signed = (signer or old).sign(f"{old.key_id}--{new.key_id}".encode())
    text = "-".join(signature.hex() for signature in signed)
    signature = base64.urlsafe_b64encode(text.encode()).decode()
    return json.dumps(
        {"old_keys": old.key_id, "new_keys": new.key_id, "signature": signature, "priblocks_version": [0, 0, 1]}
    ).encode()


ONE, TWO, STRANGER = Keys(), Keys(), Keys()


def ids(blocks: list[bytes]) -> list[str]:
    """Key ids of the history that blocks give."""
    return [keys.key_id for keys in certificates.control_key_history(blocks)]


def test_a_history_begins_with_keys_that_sign_themselves() -> None:
    """The first block must announce its own signer; a block before it that does not is passed over."""
    assert ids([update(ONE, ONE)]) == [ONE.key_id]
    assert ids([update(ONE, TWO), update(ONE, ONE)]) == [ONE.key_id]
    assert ids([update(ONE, ONE, signer=STRANGER)]) == []


def test_keys_are_replaced_only_by_the_keys_before_them() -> None:
    """A rotation signed by the current keys counts; one by strangers, or by keys that were replaced, does not."""
    assert ids([update(ONE, ONE), update(ONE, TWO)]) == [ONE.key_id, TWO.key_id]
    assert ids([update(ONE, ONE), update(ONE, STRANGER, signer=STRANGER)]) == [ONE.key_id]
    assert ids([update(ONE, ONE), update(ONE, TWO), update(ONE, STRANGER)]) == [ONE.key_id, TWO.key_id]
    assert ids([update(ONE, ONE), update(STRANGER, STRANGER)]) == [ONE.key_id]


def test_a_certificate_holds_with_recorded_keys_only() -> None:
    """Keys on record certify, also after they were replaced; strangers' keys do not."""
    history = certificates.control_key_history([update(ONE, ONE), update(ONE, TWO)])
    assert certificates.check(history, b"x", ONE.certify(b"x"))
    assert certificates.check(history, b"x", TWO.certify(b"x"))
    assert not certificates.check(history, b"x", STRANGER.certify(b"x"))
    assert not certificates.check(history, b"y", ONE.certify(b"x"))
    assert not certificates.check([], b"x", ONE.certify(b"x"))


def test_every_family_must_sign() -> None:
    """A certificate with one signature, with two of the same family, or with them swapped is refused."""
    history = certificates.control_key_history([update(ONE, ONE)])
    first, second = ONE.sign(certificates.LABEL + b"x")
    for signatures in ([first], [first, first], [second, first], [first, second, second]):
        assert not certificates.check(history, b"x", certificates.encode(ONE.key_id, signatures))


def test_statements_are_separated_from_everything_else_that_is_signed() -> None:
    """A signature over the bare statement is no certificate: ours begin with 0xFF and a label."""
    history = certificates.control_key_history([update(ONE, ONE)])
    assert certificates.LABEL[0] == 0xFF
    assert not certificates.check(history, b"x", certificates.encode(ONE.key_id, ONE.sign(b"x")))


CERTIFICATE = ONE.certify(b"statement")
HISTORY = certificates.control_key_history([update(ONE, ONE)])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_mutated_byte_is_refused(data: st.DataObject) -> None:
    """A certificate with any byte changed, cut or added is false, never an exception."""
    bad = bytearray(CERTIFICATE)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    assert not certificates.check(HISTORY, b"statement", bytes(bad))
    assert not certificates.check(HISTORY, b"statement", CERTIFICATE[: data.draw(st.integers(0, len(CERTIFICATE) - 1))])


@given(junk=st.binary(max_size=500))
def test_junk_is_refused_without_exception(junk: bytes) -> None:
    """Any bytes as certificate or as control-key block are simply not believed."""
    assert not certificates.check(HISTORY, b"statement", junk)
    assert certificates.control_key_history([junk]) == []


@pytest.mark.parametrize("key_id", ["", "|", "EC-secp256k1:time:00", ONE.key_id[1:], ONE.key_id * 2, "|a:b:zz|c:d:00"])
def test_key_ids_must_name_each_family_once(key_id: str) -> None:
    """Ids that lack a family, repeat one or are malformed give no keys."""
    assert certificates.parse_key_id(key_id) is None


@given(text=st.text(max_size=260))
def test_challenges_are_two_hundred_printable_characters(text: str) -> None:
    """U1: no other text is ever signed for a stranger."""
    honest = len(text) == 200 and all("!" <= character <= "~" for character in text)
    if honest:
        assert checked_challenge(text) == text
    else:
        with pytest.raises(UntrustedInputError):
            checked_challenge(text)


@given(name=st.text(alphabet="ab./\\\0", max_size=8))
def test_file_names_with_a_way_out_are_refused(name: str) -> None:
    """U4: separators, NUL, `..` and empty names are refused."""
    if not name or name == "." or any(bad in name for bad in ("/", "\\", "\0", "..")):
        with pytest.raises(UntrustedInputError):
            checked_file_name(name)
    else:
        assert checked_file_name(name) == name


def test_store_keys_are_fresh_and_read_back() -> None:
    """Each call makes other keys, for device and group apart; foreign bytes are our error."""
    one, two = parse_store_key(new_store_key()), parse_store_key(new_store_key())
    assert len({k.private_key for k in (one.device, one.group, two.device, two.group)}) == 4
    for junk in (b"", b"{}", b"\xff"):
        with pytest.raises(MisuseError):
            parse_store_key(junk)


@given(junk=st.text(max_size=300))
def test_junk_is_no_invitation(junk: str) -> None:
    """Any text that is not an invitation is our error."""
    with pytest.raises(MisuseError):
        parse_invitation(junk)
