"""A request and its one reply, as a client has it under way: repeated until it is answered or too late."""

from __future__ import annotations

import time
from concurrent.futures import Future

from walytis_vault.bus import pace, turns
from walytis_vault.bus.calls import Call, WaitForCall
from walytis_vault.bus.exchange import reported
from walytis_vault.bus.link import Link
from walytis_vault.bus.protocol import (
    Header,
    Kind,
    pack,
    raised,
)
from walytis_vault.domain.errors import VaultError


class CallExchange:
    """One request and its one reply; the future's result is the encoded body of the reply."""

    def __init__(self, link: Link, call: Call, request_id: bytes, timeout: float, data: bytes | None = None) -> None:
        self.id = request_id
        self.lane: turns.Kind = "" if isinstance(call, WaitForCall) else "call"
        self.sent = False
        self.began = time.monotonic()
        self.future: Future[bytes] = Future()
        self.future.set_running_or_notify_cancel()  # nobody but the link ends it: see `cancel`
        self._link = link
        self._parts = pack(Kind.REQUEST, request_id, call, data)
        self._deadline = self.began + timeout
        self._timeout = timeout
        self._repeat_in = pace.REPEAT
        self._repeat_at = self.began + pace.REPEAT

    def cancel(self) -> None:
        """Nobody waits for the reply any more: do not ask again. From any thread."""
        self._link.post(lambda: self._link.end(self))

    def on_connected(self) -> None:
        """Send the request (again), byte for byte."""
        self._repeat_in = pace.REPEAT
        self._repeat_at = time.monotonic() + pace.REPEAT
        self._link.send_parts(self._parts)

    def on_message(self, message: Header) -> None:
        """Take the reply."""
        if message.kind is Kind.REPLY:
            self._link.end(self)
            if not self.future.done():
                self.future.set_result(message.body)
        elif message.kind is Kind.ERROR:
            self._link.end(self)
            self.fail(raised(reported(message)))

    def on_bulk(self, message: Header) -> None:
        """Calls have no data: ignored."""

    def on_tick(self, now: float) -> None:
        """Repeat it, under the same id, in case request or reply was lost; give up at the deadline."""
        if now >= self._deadline:
            self._link.end(self)
            self.fail(self._link.too_late(f"no answer within {self._timeout:g} s: retry with the same request id"))
        elif self.sent and now >= self._repeat_at:
            self._repeat_in = min(2 * self._repeat_in, pace.REPEAT_MOST)
            self._repeat_at = now + self._repeat_in
            self._link.send_parts(self._parts)

    def fail(self, error: VaultError) -> None:
        """End with an error."""
        if not self.future.done():
            self.future.set_exception(error)
