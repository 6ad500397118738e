"""A program that sends one message of very many parts, to a socket or to whoever asks it something.

`python -m support.endless_sender MIB dial ENDPOINT SERVER_KEY PUBLIC SECRET`, or `… MIB serve SECRET`, which prints
its port.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

PART = 200_000
_TESTS = Path(__file__).parents[1]


@contextmanager
def endless(mebibytes: int, *words: str) -> Iterator[str]:
    """Run it; gives what it prints first, when it serves."""
    command = [sys.executable, "-m", "support.endless_sender", str(mebibytes), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_TESTS) as sender:
        try:
            assert sender.stdout is not None
            yield sender.stdout.readline().strip() if words[0] == "serve" else ""
        finally:
            sender.kill()


def main() -> None:
    """Send, and wait until stdin ends."""
    count = (int(sys.argv[1]) << 20) // PART
    context, begin = zmq.Context(), []
    if sys.argv[2] == "dial":
        s = context.socket(zmq.DEALER)
        endpoint, s.curve_serverkey, s.curve_publickey, s.curve_secretkey = (w.encode() for w in sys.argv[3:7])
        s.connect(endpoint.decode())
    else:
        s = context.socket(zmq.ROUTER)
        s.curve_server, s.curve_secretkey = True, sys.argv[3].encode()
        sys.stdout.write(f"{s.bind_to_random_port('tcp://127.0.0.1')}\n")
        sys.stdout.flush()
        begin = s.recv_multipart()[:1]
    for frame in begin:
        s.send(frame, zmq.SNDMORE)
    part = bytes(PART)
    for _ in range(count):
        s.send(part, zmq.SNDMORE, copy=False)
    s.send(b"")
    sys.stdin.read()


if __name__ == "__main__":
    main()
