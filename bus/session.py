"""What `Client` and `AsyncClient` share: where the node is, which key to use, and every verb on a link.

Simple calls return a `Reply` that threads wait for and coroutines await. Transfers block the thread that
calls them: they stream between a file and the link with bounded memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec
import platformdirs

from walytis_vault.bus import calls as c
from walytis_vault.bus import requests as r
from walytis_vault.bus.endpoint import EndpointRecord, read_record
from walytis_vault.bus.exchange_call import CallExchange
from walytis_vault.bus.exchange_download import DownloadExchange
from walytis_vault.bus.exchange_subscription import SubscriptionExchange
from walytis_vault.bus.exchange_upload import RestartError, UploadExchange
from walytis_vault.bus.files import Source, Target
from walytis_vault.bus.link import Link
from walytis_vault.bus.messages import Published, PublishOptions, QueryPage
from walytis_vault.bus.pace import new_id
from walytis_vault.bus.rows import Row, make_row
from walytis_vault.bus.security import LOCAL, ClientKey, load_key
from walytis_vault.domain.errors import MisuseError, TransportError

T = TypeVar("T")
Progress = Callable[[int, "int | None"], None]

_PUBLISHED: Final = msgspec.msgpack.Decoder(Published)
_PAGE_ROWS: Final = 500
PAST_S: Final = 300.0
"""Seconds that the first page of a view of the past may take at least: the view is folded for it."""


class Reply(Generic[T]):
    """The reply to a call, to come."""

    def __init__(
        self,
        future: Future[bytes],
        decoder: msgspec.msgpack.Decoder[T],
        cancel: Callable[[], None] = lambda: None,
    ) -> None:
        self._future = future
        self._decoder = decoder
        self._cancel = cancel

    def result(self) -> T:
        """Block until it is there. Raises what the node reported."""
        try:
            return self._decode(self._future.result())
        finally:
            self._leave()

    async def wait(self) -> T:
        """The same, for coroutines."""
        try:
            return self._decode(await asyncio.wrap_future(self._future))
        finally:
            self._leave()

    def _leave(self) -> None:
        if not self._future.done():
            self._cancel()

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as e:
            raise TransportError(f"the node's reply is malformed: {e}") from e


class Pages:
    """Walks through a query, page by page."""

    def __init__(
        self,
        view: str,
        limit: int | None,
        filters: dict[str, Any],
        *,
        cursor: str | None = None,
        as_of: r.AsOf | None = None,
    ) -> None:
        self._view = view
        self.as_of = as_of
        self.position = 0
        """Position of the view when the last page was read."""
        self._filters = filters
        self._left = r.check_limit(limit)
        self.cursor = cursor
        """Where the next page begins; None at the end."""
        self._more = True

    def next(self) -> r.Ask[QueryPage] | None:
        """What to ask next; None when there are all."""
        if not self._more or self._left == 0:
            return None
        size = _PAGE_ROWS if self._left is None else min(self._left, _PAGE_ROWS)
        return r.page(self._view, size, self.cursor, self._filters, self.as_of)

    def take(self, page: QueryPage) -> list[Row]:
        """The rows of a page."""
        if self._left is not None:
            self._left -= len(page.rows)
        self.cursor, self.position = page.cursor, page.position
        self._more = page.cursor is not None
        return [make_row(self._view, row) for row in page.rows]


def default_home() -> Path:
    """`$WALYTIS_VAULT_HOME`, else the platform's data folder."""
    given = os.environ.get("WALYTIS_VAULT_HOME")
    return Path(given) if given else Path(platformdirs.user_data_dir("walytis-vault"))


class Session:
    """One client's link and how it finds its node. Arguments as in `Client`."""

    def __init__(
        self,
        home: str | os.PathLike[str] | None,
        *,
        endpoint: str | None,
        timeout: float,
        key: str | os.PathLike[str] | None,
    ) -> None:
        self.timeout = r.check_timeout(timeout)
        if home is None and endpoint is not None and endpoint.startswith("ipc:///"):
            self._folder = Path(endpoint.removeprefix("ipc://")).parent
        else:
            self._folder = (default_home() if home is None else Path(home)).absolute() / "bus"
        self._endpoint = endpoint
        self._key_name = key if key is not None else os.environ.get("WALYTIS_VAULT_KEY", LOCAL)
        self.link = Link(self._find, self._key)

    def _find(self) -> EndpointRecord:
        record = read_record(self._folder)
        if self._endpoint is None:
            return record
        bulk = record.bulk if self._endpoint == record.endpoint else None
        return msgspec.structs.replace(record, endpoint=self._endpoint, bulk=bulk)

    def _key(self) -> ClientKey:
        name = self._key_name
        path = Path(name)
        if isinstance(name, str) and os.sep not in name and not name.endswith(".key"):
            path = self._folder / f"{name}.key"
        return load_key(path)

    def close(self) -> None:
        """End everything. Idempotent."""
        self.link.close()

    def call(self, ask: r.Ask[T], request_id: bytes | None = None, timeout: float | None = None) -> Reply[T]:
        """Send a call."""
        wait = self.timeout if timeout is None else r.check_timeout(timeout)
        exchange = CallExchange(self.link, ask.call, request_id or new_id(), wait)
        self.link.begin(exchange)
        return Reply(exchange.future, ask.reply, exchange.cancel)

    def wait_for(self, position: int, timeout: float | None) -> Reply[int]:
        """Wait for views; the node keeps the time, the client a second more."""
        wait = self.timeout if timeout is None else r.check_wait(timeout)
        return self.call(r.wait_for(position, wait), timeout=wait + 1.0)

    def subscribe(self, view: str, after: int, until: int | None, filters: dict[str, Any]) -> SubscriptionExchange:
        """Follow a view."""
        exchange = SubscriptionExchange(self.link, r.subscribe(view, after, until, filters, self.link.limits.changes))
        exchange.start()
        return exchange

    def ask(self, pages: Pages) -> Reply[QueryPage] | None:
        """Ask for the next page; None when there are all."""
        ask = pages.next()
        if ask is None:
            return None
        return self.call(ask, timeout=self.timeout if pages.as_of is None else max(self.timeout, PAST_S))

    def rows(self, view: str, limit: int | None, filters: dict[str, Any], as_of: r.AsOf | None = None) -> Iterator[Row]:
        """Rows, page by page."""
        pages = Pages(view, limit, filters, as_of=as_of)
        while (reply := self.ask(pages)) is not None:
            yield from pages.take(reply.result())

    def publish_small(self, data: bytes, options: PublishOptions, request_id: bytes | None) -> Reply[Published]:
        """Send a content inside its request."""
        call = c.PublishCall(options=options, inline=True, size=len(data))
        exchange = CallExchange(self.link, call, request_id or new_id(), self.timeout, data)
        self.link.begin(exchange)
        return Reply(exchange.future, _PUBLISHED, exchange.cancel)

    def is_small(self, size: int | None) -> bool:
        """Whether a content goes inside its request."""
        return size is not None and size <= self.link.limits.inline

    def upload(self, source: Source, options: PublishOptions, request_id: bytes | None) -> UploadExchange:
        """An upload, not yet begun."""
        call = c.PublishCall(options=options, inline=False, size=source.size)
        return UploadExchange(self.link, call, request_id or new_id(), self.timeout)

    def download(self, content_id: str, timeout: float | None) -> DownloadExchange:
        """A download, not yet begun."""
        wait = self.timeout if timeout is None else r.check_timeout(timeout)
        return DownloadExchange(self.link, r.content_id(content_id), wait)


def publish(
    session: Session, data: object, options: PublishOptions, progress: Progress | None, request_id: bytes | None
) -> Published:
    """Publish; blocks. Small contents go inside the request, others as a stream."""
    source = Source(data)
    try:
        if session.is_small(source.size):
            small = session.publish_small(source.read_all(), options, request_id).result()
            if progress is not None:
                progress(source.size or 0, source.size)
            return small
        return send(session.upload(source, options, request_id), source, progress)
    finally:
        source.close()


def send(upload: UploadExchange, source: Source, progress: Progress | None) -> Published:
    """Stream a source up; blocks."""
    upload.start()
    try:
        while True:
            try:
                done = 0
                while len(piece := source.read()):
                    upload.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, source.size)
                return Reply(_done(upload.finish()), _PUBLISHED).result()
            except RestartError:
                source.rewind()
                upload.restart()
    except BaseException:
        upload.cancel()
        raise


def receive(download: DownloadExchange, to: object | None, progress: Progress | None) -> bytes | None:
    """Stream a content down, into memory or a target; blocks."""
    target = None if to is None else Target(to)
    memory = _Memory(download) if target is None else None
    try:
        download.start()
        done = 0
        while (piece := download.next(memory.room if memory is not None else None)) is not None:
            if target is not None:
                target.write(piece)
            done += len(piece)
            download.consumed(len(piece))
            if progress is not None:
                progress(done, download.length)
        if memory is not None:
            return memory.whole()
        assert target is not None
        target.finish()
        return None
    except MemoryError as e:
        raise MisuseError("the content does not fit into memory: request it with `to=` a file") from e
    finally:
        download.cancel()
        if target is not None:
            target.discard()


class _Memory:
    """A content in memory that is made once, filled in place and handed out without a copy."""

    def __init__(self, download: DownloadExchange) -> None:
        self._download = download
        self._bytes = BytesIO()
        self._view: memoryview | None = None
        self._done = 0

    def room(self, size: int) -> memoryview:
        """Memory for the next bytes. Raises MemoryError."""
        if self._view is None:
            # Its pages come when they are written to; and as nobody else has these bytes, there is no copy of them.
            self._bytes = BytesIO(bytes(self._download.length or 0))
            self._view = self._bytes.getbuffer()
        begin, self._done = self._done, self._done + size
        part = self._view[begin : self._done]
        if len(part) != size:
            raise TransportError("the node sent more than the content has: request it again")
        return part

    def whole(self) -> bytes:
        """All of it; the views of it end here."""
        if self._view is not None:
            self._view.release()
        return self._bytes.getvalue()


def _done(body: bytes) -> Future[bytes]:
    future: Future[bytes] = Future()
    future.set_result(body)
    return future


__all__ = ["Pages", "Progress", "Reply", "Session", "default_home", "publish", "receive", "send"]
