"""The node's process with a tap on everything that it sends to other nodes, below both encryptions of the transport.

More than any observer sees: it writes down what CURVE and libp2p would hide, as if both had been broken. For the test's
positive control it also writes down the private keys that are made for one request each, which no disk should ever see.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from walytis_vault.adapters.exchange import key_transfer, sealed_stream
from walytis_vault.peers import protocol as p
from walytis_vault.process import main

TAP_VARIABLE = "VAULT_TEST_TAP"


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One thing that was written down."""

    kind: Literal["message", "stream", "private"]
    parts: tuple[bytes, ...]


def read_tap(path: Path) -> list[Record]:
    """Everything that was written down, in order."""
    raw, found, at = path.read_bytes(), [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        found.append(msgspec.msgpack.decode(raw[at + 4 : at + 4 + size], type=Record))
        at += 4 + size
    return found


def install(path: Path) -> None:
    """Tap messages of the peer door, frames of bulk streams, and the key pairs of key requests."""
    lock = threading.Lock()

    def note(record: Record) -> None:
        data = msgspec.msgpack.encode(record)
        with lock, path.open("ab") as file:
            file.write(len(data).to_bytes(4, "big") + data)

    hpke: Any = importlib.import_module("cryptography.hazmat.primitives.hpke")
    hybrid = hpke.MLKEM768X25519PrivateKey
    pack, send, make = p.pack, sealed_stream.SealedStream.send, key_transfer.OpenRequest.__init__

    def tapped_pack(nonce: bytes, message: p.Request | p.Reply, payload: Sequence[bytes] = ()) -> list[bytes]:
        frames = pack(nonce, message, payload)
        note(Record("message", tuple(bytes(f) for f in frames)))
        return frames

    def tapped_send(self: Any, kind: int, data: bytes | memoryview) -> None:
        note(Record("stream", (bytes(data),)))
        send(self, kind, data)

    def tapped_make(self: Any, *args: Any, **named: Any) -> None:
        made: list[bytes] = []

        def keep(ml_kem: Any, x25519: Any) -> Any:
            made.extend((ml_kem.private_bytes_raw(), x25519.private_bytes_raw()))
            return hybrid(ml_kem, x25519)

        with lock:
            hpke.MLKEM768X25519PrivateKey = keep
            try:
                make(self, *args, **named)
            finally:
                hpke.MLKEM768X25519PrivateKey = hybrid
        note(Record("private", (*made, self._statement)))

    p.pack = tapped_pack
    sealed_stream.SealedStream.send = tapped_send  # type: ignore[method-assign]
    key_transfer.OpenRequest.__init__ = tapped_make  # type: ignore[method-assign]


if __name__ == "__main__":
    install(Path(os.environ[TAP_VARIABLE]))
    main()
