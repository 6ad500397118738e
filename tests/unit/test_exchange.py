"""Keys for one request, words of the peer protocol, codes and their list: everything that strangers may send."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from walytis_vault.adapters.crypto.signing import HybridSigner, HybridVerifier
from walytis_vault.adapters.exchange import KeyAsk, OpenRequest, seal_key
from walytis_vault.adapters.system import OsFileSystem
from walytis_vault.adapters.walytis.chain_pack import check_pack
from walytis_vault.domain.errors import (
    ConflictError,
    ForgottenError,
    MisuseError,
    PermissionRefusedError,
    StorageError,
    UnknownIdError,
    UntrustedInputError,
)
from walytis_vault.domain.events import DeviceKeys
from walytis_vault.domain.ids import ContentId, ContentKey, KeyId
from walytis_vault.peers import protocol as p
from walytis_vault.peers.invitations import (
    Code,
    Invitations,
    door_keys,
    read_code,
    write_code,
)

VAULT, HOLDER = "QmVault", "did:holder"
CONTENT, KEY = ContentId(bytes(range(16))), ContentKey(bytes(range(32)))
SIGNER = HybridSigner.generate()
ASKER = DeviceKeys(
    member="did:asker",
    device="did:asker",
    ed25519=SIGNER.ed25519_public,
    ml_dsa_65=SIGNER.ml_dsa_65_public,
    bus=bytes(32),
    peer_id="12D3asker",
)


def request() -> tuple[OpenRequest, KeyAsk]:
    """An own open request, and how its holder understands it."""
    made = OpenRequest(
        SIGNER, vault_id=VAULT, content_id=CONTENT, asker=ASKER.device, holder=HOLDER, nonce=secrets.token_bytes(16)
    )
    ask = KeyAsk(
        vault_id=VAULT,
        content_id=CONTENT,
        asker=ASKER.device,
        holder=HOLDER,
        nonce=made.wire.nonce,
        public=made.wire.public,
    )
    return made, ask


def test_a_key_opens_once_for_its_own_request() -> None:
    """The sealed key opens with the request that asked for it, and with it no second time."""
    made, ask = request()
    sealed = seal_key(KEY, ask, made.wire.signature, ASKER, HybridVerifier())
    assert bytes(KEY) not in sealed
    assert made.open(sealed) == KEY
    with pytest.raises(UntrustedInputError):
        made.open(sealed)


def test_a_key_opens_for_no_other_request() -> None:
    """A reply to one request is refused by every other, and so is a changed one."""
    made, ask = request()
    other, _ = request()
    sealed = seal_key(KEY, ask, made.wire.signature, ASKER, HybridVerifier())
    with pytest.raises(UntrustedInputError):
        other.open(sealed)
    with pytest.raises(UntrustedInputError):
        made.open(sealed[:-1] + bytes([sealed[-1] ^ 1]))


CHANGES: list[Callable[[KeyAsk], KeyAsk]] = [
    lambda a: msgspec.structs.replace(a, vault_id="QmOther"),
    lambda a: msgspec.structs.replace(a, content_id=bytes(16)),
    lambda a: msgspec.structs.replace(a, asker="did:other"),
    lambda a: msgspec.structs.replace(a, holder="did:other"),
    lambda a: msgspec.structs.replace(a, nonce=bytes(16)),
    lambda a: msgspec.structs.replace(a, public=a.public[:-1] + bytes([a.public[-1] ^ 1])),
    lambda a: msgspec.structs.replace(a, public=a.public[:-1]),
    lambda a: msgspec.structs.replace(a, nonce=a.nonce + b"x"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"change-{CHANGES.index(change)}")
def test_no_key_is_sealed_for_a_request_that_was_changed(change: Callable[[KeyAsk], KeyAsk]) -> None:
    """Every part of a request is signed: whichever is changed, it gets nothing."""
    made, ask = request()
    with pytest.raises(UntrustedInputError):
        seal_key(KEY, change(ask), made.wire.signature, ASKER, HybridVerifier())


def test_no_key_is_sealed_for_somebody_elses_signature() -> None:
    """A request signed by another key than the device announced gets nothing."""
    made, ask = request()
    stranger = HybridSigner.generate()
    claimed = msgspec.structs.replace(ASKER, ed25519=stranger.ed25519_public, ml_dsa_65=stranger.ml_dsa_65_public)
    with pytest.raises(UntrustedInputError):
        seal_key(KEY, ask, made.wire.signature, claimed, HybridVerifier())


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_arbitrary_frames_are_refused_as_untrusted(frames: list[bytes]) -> None:
    """Whatever a peer sends, decoding gives a message or our error."""
    try:
        p.nonce_of(frames)
        p.read_request(frames)
    except UntrustedInputError:
        pass


@given(st.data())
def test_mutated_requests_are_read_or_refused(data: st.DataObject) -> None:
    """A message with any byte changed is another message or our error."""
    hello = p.Hello(addresses=("/ip4/127.0.0.1/tcp/1",), known={"12D3": ("/ip4/1.2.3.4/tcp/5",)}, have={"did:a": 7})
    frames = p.pack(bytes(16), hello)
    body = bytearray(frames[1])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        p.read_request([frames[0], bytes(body)])
        p.read_reply([frames[0], bytes(body)])
    except UntrustedInputError:
        pass


def test_refusals_keep_their_kind() -> None:
    """An error told over the wire is the same kind of error on the other side."""
    told = p.read_reply(p.pack(bytes(16), p.refusal(ConflictError("used"))))
    assert isinstance(told, p.Refused)
    assert isinstance(p.error_of(told), ConflictError)


class StoppedClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return self.now_ms / 1000


def code_of(secret: bytes, expires_ms: int) -> Code:
    """A code with some secret."""
    return Code(
        vault_id=VAULT, root=bytes(32), peer_id="12D3", addresses=("/ip4/127.0.0.1/tcp/4",),
        door=bytes(32), secret=secret, expires_ms=expires_ms, group="did:group", member=None,
    )  # fmt: skip


def test_codes_are_read_as_written() -> None:
    """A code survives line breaks and spaces; one that is cut, or of another version, is refused; so is an old one."""
    code = code_of(bytes(32), 5)
    text = write_code(code)
    assert read_code(f" {text[:40]}\n{text[40:]} \n") == code
    assert read_code(write_code(msgspec.structs.replace(code, member="did:me"))).member == "did:me"
    for wrong in (text[:-9], text + "AAAA", "", "hello", "ä", "A" * 100_000):
        with pytest.raises(MisuseError, match="no invitation code"):
            read_code(wrong)
    for other in (b"\x03later", b"\x8a\xa7version\x01"):
        with pytest.raises(MisuseError, match="another version"):
            read_code(base64.urlsafe_b64encode(other).rstrip(b"=").decode())


def test_an_invitation_lets_one_device_in(tmp_path: Path) -> None:
    """After the first device was let in, only that one may come again; also when the list was read anew."""
    clock, secret = StoppedClock(), secrets.token_bytes(32)
    door = z85.decode(door_keys(secret)[0])
    invitations = Invitations(tmp_path / "invitations", OsFileSystem(), clock)
    assert not invitations.knows(door)
    invitations.add(secret, 60)
    first, second = KeyId(bytes(32)), KeyId(b"2" * 32)
    entry = invitations.check(door, first)
    assert entry.digest == hashlib.sha256(secret).digest()
    invitations.use(entry, first, "did:first")
    again = Invitations(tmp_path / "invitations", OsFileSystem(), clock)
    assert again.knows(door)
    again.use(again.check(door, first), first, "did:first")
    for key_id in (second, None):
        with pytest.raises(ConflictError, match="used already"):
            again.check(door, key_id)
    with pytest.raises(ConflictError):
        again.use(entry, second, "did:second")


def test_a_revoked_invitation_lets_nobody_in(tmp_path: Path) -> None:
    """It is refused with the reason, also after a restart; what was used cannot be revoked; the list tells it all."""
    clock, secret, other = StoppedClock(), secrets.token_bytes(32), secrets.token_bytes(32)
    invitations = Invitations(tmp_path / "invitations", OsFileSystem(), clock)
    invitations.add(secret, 60)
    clock.now_ms += 1000
    invitations.add(other, 60, own_device=True)
    newer, older = invitations.all()
    assert (newer.own_device, older.own_device, older.created_ms) == (True, False, clock.now_ms - 1000)
    checked = invitations.check(older.door_key)
    invitations.revoke(older.invitation_id.upper())
    invitations.revoke(older.invitation_id)
    again = Invitations(tmp_path / "invitations", OsFileSystem(), clock)
    for invited in (invitations, again):
        with pytest.raises(PermissionRefusedError, match="revoked"):
            invited.check(older.door_key)
        with pytest.raises(PermissionRefusedError, match="revoked"):
            invited.use(checked, KeyId(bytes(32)), "did:late")
    again.use(newer, KeyId(bytes(32)), "did:mine")
    with pytest.raises(ConflictError, match="used already, by did:mine"):
        again.revoke(newer.invitation_id)
    with pytest.raises(UnknownIdError):
        again.revoke("00")
    assert [again.state(e) for e in again.all()] == ["used", "revoked"]
    clock.now_ms += 1000
    clock.now_ms = again.add(secrets.token_bytes(32), 60)
    assert again.state(again.all()[0]) == "expired"


def test_an_expired_invitation_lets_nobody_in(tmp_path: Path) -> None:
    """It says that it has expired; an unknown one is refused; an absurd span is not begun."""
    clock, secret = StoppedClock(), secrets.token_bytes(32)
    door = z85.decode(door_keys(secret)[0])
    invitations = Invitations(tmp_path / "invitations", OsFileSystem(), clock)
    clock.now_ms = invitations.add(secret, 60)
    with pytest.raises(ForgottenError, match="expired"):
        invitations.check(door)
    with pytest.raises(PermissionRefusedError):
        invitations.check(bytes(32))
    for span in (0.0, -1.0, 1e9):
        with pytest.raises(MisuseError):
            invitations.add(secret, span)


def test_the_list_of_invitations_holds_no_secret(tmp_path: Path) -> None:
    """Neither the secret nor the key that is made from it lies on the inviter's disk."""
    secret = secrets.token_bytes(32)
    Invitations(tmp_path / "invitations", OsFileSystem(), StoppedClock()).add(secret, 60)
    written = (tmp_path / "invitations").read_bytes()
    assert secret not in written
    assert z85.decode(door_keys(secret)[1]) not in written


def test_a_damaged_list_of_invitations_is_told(tmp_path: Path) -> None:
    """It is an error of storage that says what to do."""
    (tmp_path / "invitations").write_bytes(b"\xc1nonsense")
    with pytest.raises(StorageError, match="damaged"):
        Invitations(tmp_path / "invitations", OsFileSystem(), StoppedClock())


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b", "a\\b"])
def test_a_packed_chain_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    """A pack with a name that leads elsewhere is refused before anything is unpacked."""
    import zipfile

    pack = tmp_path / "pack.zip"
    with zipfile.ZipFile(pack, "w") as made:
        made.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(UntrustedInputError, match="plain name"):
        check_pack(pack)


def test_a_packed_chain_is_no_bomb(tmp_path: Path) -> None:
    """A pack that grows beyond measure is refused, and so is what is no pack."""
    import zipfile

    pack = tmp_path / "pack.zip"
    with zipfile.ZipFile(pack, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", bytes(50 << 20))
    with pytest.raises(UntrustedInputError, match="larger"):
        check_pack(pack)
    pack.write_bytes(b"PK nonsense")
    with pytest.raises(UntrustedInputError):
        check_pack(pack)
