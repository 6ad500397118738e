"""A program with a key that sends one message of very many parts: `python -m support.endless_sender HOME KEY MIB`."""

from __future__ import annotations

import sys
from pathlib import Path

import zmq

from walytis_vault.bus.endpoint import read_record
from walytis_vault.bus.security import load_key

PART = 200_000


def main() -> None:
    """Send until stdin ends."""
    folder = Path(sys.argv[1]) / "bus"
    record, key = read_record(folder), load_key(folder / f"{sys.argv[2]}.key")
    s = zmq.Context().socket(zmq.DEALER)
    s.linger = 0
    s.curve_serverkey = record.server_key.encode()
    s.curve_publickey, s.curve_secretkey = key.public_key.encode(), key.secret_key.encode()
    s.connect(record.endpoint)
    part = bytes(PART)
    for _ in range((int(sys.argv[3]) << 20) // PART):
        s.send(part, zmq.SNDMORE, copy=False)
    s.send(b"")
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
