"""Another user of the machine tries what it can at two nodes: files, sockets, doors and tunnels' local ports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.peer_nodes import Member, found_and_join, stop_all

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

STRANGER = """
import encodings.idna, json, os, signal, socket, sys
import zmq
home, pid, ports = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def read(path):
    return lambda: open(path, "rb").read(1)
def unix(name):
    return lambda: socket.socket(socket.AF_UNIX).connect(home + "/bus/" + name)
def asks(port, secure):
    def ask():
        context = zmq.Context()
        s = context.socket(zmq.DEALER)
        s.linger, s.rcvtimeo = 0, 3000
        if secure:
            s.curve_publickey, s.curve_secretkey = zmq.curve_keypair()
            s.curve_serverkey = zmq.curve_keypair()[0]
        s.connect("tcp://127.0.0.1:%d" % port)
        try:
            s.send_multipart([b"WVP1" + bytes(16), b"\\x81\\xa1t\\xa4pull"])
            s.recv_multipart()
        except zmq.Again as e:
            raise OSError("no answer") from e
        finally:
            context.destroy(linger=0)
    return ask
def raw(port):
    def knock():
        with socket.create_connection(("127.0.0.1", port), 3) as s:
            s.settimeout(3)
            s.sendall(os.urandom(64))
            said = b""
            while len(said) < 100 and (part := s.recv(4096)):
                said += part
        if len(said) < 100:  # a greeting of ZeroMQ or libp2p is no secret
            raise OSError("nothing")
    return knock
tries = {
    "list the home": lambda: os.listdir(home), "list the store": lambda: os.listdir(home + "/store"),
    "read the config": read(home + "/vault.json"), "read the key": read(home + "/keys/vault.key"),
    "read secrets": read(home + "/keys/secrets.sealed"), "read the log": read(home + "/log.sqlite"),
    "read a client key": read(home + "/bus/local.key"), "read the node's key": read(home + "/ipfs/config"),
    "connect to the bus": unix("node.ipc"), "connect to the bulk socket": unix("bulk.ipc"),
    "add a client": lambda: open(home + "/bus/clients/x.json", "w"), "write": lambda: open(home + "/x", "w"),
    "remove the socket": lambda: os.unlink(home + "/bus/node.ipc"),
    "move the home": lambda: os.rename(home, home + "2"),
    "open it up": lambda: os.chmod(home, 0o777), "stop it": lambda: os.kill(pid, signal.SIGTERM),
    "read its memory": read("/proc/%d/mem" % pid), "read its environment": read("/proc/%d/environ" % pid),
}
for port in ports:
    tries["ask port %d" % port] = asks(port, False)
    tries["ask port %d with keys" % port] = asks(port, True)
    tries["knock at port %d" % port] = raw(port)
done = []
for name, action in tries.items():
    try:
        action()
        done.append(name)
    except (OSError, zmq.ZMQError):
        pass
print(json.dumps([len(tries), done]))
"""


def listening(member: Member) -> list[int]:
    """TCP ports of 127.0.0.1 on which a node listens (Linux)."""
    assert member.node is not None
    inodes = set()
    for entry in Path(f"/proc/{member.node.pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(entry))
        except FileNotFoundError:
            continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sorted(
        int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_nothing_from_connected_nodes() -> None:
    """A process of another user tries dozens of things with files, sockets, doors and tunnels: none succeeds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        members = found_and_join(folder, "a", "b")
        try:
            content_id = members[0].client.publish(b"not for the neighbours").content_id
            for member in members:
                ports = listening(member)
                assert len(ports) >= 3, "the node's own port, its doors, and tunnels"
                assert member.node is not None
                command = [sys.executable, "-c", STRANGER, str(member.home), str(member.node.pid), json.dumps(ports)]
                answer = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
                assert answer.returncode == 0, answer.stderr
                count, done = json.loads(answer.stdout)
                assert count >= 18 + 3 * len(ports)
                assert done == []
                assert member.client.request(content_id) == b"not for the neighbours"
        finally:
            stop_all(members)
