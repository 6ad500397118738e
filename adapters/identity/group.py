"""The running group identity: invitations out, newcomers in. Lives only while somebody is invited or joins.

Upstream's group manager scans its chains every few seconds, so it is started when the first invitation is made
and stopped when the last one is used, revoked or expired. An invitation is a bearer secret: whoever has it gets the
group's keys, once.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from walytis_vault.adapters.identity import guards
from walytis_vault.adapters.walytis import upstream
from walytis_vault.adapters.walytis.files import read_text, replace_file
from walytis_vault.domain.errors import MisuseError, NotYetAvailableError, TransportError

JOIN_TIMEOUT: Final = 90.0
"""Seconds; on loopback it takes about 11."""
MAX_CODE: Final = 16 << 10


class Invitation(msgspec.Struct, frozen=True):
    """What upstream needs to join, as it is handed over."""

    key: str
    ipfs_id: str
    ipfs_addresses: list[str]


class _Issued(msgspec.Struct):
    """Invitations that this node has out: key id -> seconds since 1970 at which they end."""

    expires: dict[str, float]


def parse_invitation(code: str) -> Invitation:
    """Read what `GroupHost.invite` made. Raises MisuseError."""
    try:
        if len(code) > MAX_CODE:
            raise ValueError("too long")
        invitation = msgspec.json.decode(code, type=Invitation, strict=True)
        if not invitation.ipfs_addresses or len(invitation.ipfs_addresses) > 32:
            raise ValueError("no addresses")
    except (ValueError, msgspec.MsgspecError) as e:
        raise MisuseError(f"not an invitation to an identity: {e}") from e
    return invitation


class GroupHost:
    """Runs the group manager while it is needed. Any thread may call."""

    def __init__(self, folder: Path, start: Callable[[], Any]) -> None:
        """Prepare.

        Args:
            folder: where the list of issued invitations lies.
            start: makes upstream's GroupDidManager.
        """
        self._path = folder / "invitations.json"
        self._start = start
        self._group: Any = None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._issued = self._read()

    def resume(self) -> bool:
        """Serve invitations that are still out, after a restart. Returns whether there are any."""
        with self._lock:
            self._drop_expired()
            if self._issued.expires:
                self._run()
            return bool(self._issued.expires)

    def invite(self, *, expires_s: float, addresses: Sequence[str]) -> str:
        """Make a one-use invitation.

        Args:
            expires_s: seconds after which it is worth nothing.
            addresses: this node's own multiaddrs, with or without /p2p/….
        Returns:
            A text that must be handed over in secret.
        """
        if expires_s <= 0:
            raise MisuseError("an invitation must be valid for some time")
        with self._lock:
            made = self._run().invite_member()
            # Upstream leaves out 127.0.0.1, and a joiner without any address fails badly.
            made["ipfs_addresses"] = [address.split("/p2p/")[0] for address in addresses]
            self._issued.expires[made["key"]] = time.time() + expires_s
            self._write()
        return msgspec.json.encode(Invitation(**made)).decode()

    def revoke_all(self) -> None:
        """End every invitation that is out."""
        with self._lock:
            self._issued.expires.clear()
            self._drop_expired()

    def members(self) -> set[str]:
        """DIDs that the group's chain names as members. Unverified: anyone with the chain id can add some (U3)."""
        with self._lock:
            return set(self._run().get_members_dids(no_cache=True))

    def stop(self) -> None:
        """Stop the group manager. Idempotent."""
        with self._lock:
            self._closed.set()
            group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(Exception):
                group.terminate()

    def _run(self) -> Any:
        if self._group is None:
            self._closed.clear()
            self._group = self._start()
            threading.Thread(target=self._watch, args=(self._group,), name="invitations", daemon=True).start()
        return self._group

    def _watch(self, group: Any) -> None:
        """End what expires, forget what was used, and stop when nothing is left."""
        while not self._closed.wait(1.0):
            with self._lock:
                if self._group is not group:
                    return
                self._drop_expired()
                if not self._issued.expires:
                    threading.Thread(target=self.stop, name="stop-group", daemon=True).start()
                    return

    def _drop_expired(self) -> None:
        now, live = time.time(), set()
        if self._group is not None:
            for manager in list(self._group.member_invitations):
                key_id = manager.key.get_id()
                if self._issued.expires.get(key_id, 0.0) > now:
                    live.add(key_id)
                    continue
                manager.terminate()
                self._group.member_invitations.remove(manager)
                self._group.save_invitations()
        before = dict(self._issued.expires)
        self._issued.expires = {
            key: end for key, end in before.items() if end > now and (self._group is None or key in live)
        }
        if self._issued.expires != before:
            self._write()

    def _read(self) -> _Issued:
        try:
            return msgspec.json.decode(read_text(self._path, limit=1 << 20) or "{}", type=_Issued)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _Issued(expires={})

    def _write(self) -> None:
        replace_file(self._path, msgspec.json.encode(self._issued))


def join(invitation: Invitation, group_store: Any, device: Any, *, timeout: float = JOIN_TIMEOUT) -> Any:
    """Join the group that an invitation names.

    Args:
        invitation: who invites, and where.
        group_store: a new KeyStore for the group's keys.
        device: this device's DidManager.
        timeout: seconds.
    Returns:
        Upstream's GroupDidManager, running.
    Raises:
        TransportError: the inviter cannot be reached or refuses.
        NotYetAvailableError: it took too long.
    """
    guards.install()
    node = upstream.node()
    if not any(node.peers.connect(f"{address}/p2p/{invitation.ipfs_id}") for address in invitation.ipfs_addresses):
        raise TransportError("the node that invited you cannot be reached: is it running?")
    process_class = importlib.import_module("walytis_identities.group_did_manager").JoinProcess
    process = process_class(invitation=msgspec.to_builtins(invitation), group_key_store=group_store, member=device)
    if not process.joined.wait(timeout):
        raise NotYetAvailableError(f"joining took longer than {timeout:g} s: try again with a new invitation")
    if process.error_message:
        raise TransportError(f"the invitation was not accepted: {process.error_message} Ask for a new one.")
    return process.group_did_manager
