"""`AsyncClient`: a vault for asyncio programs, with the verbs of `Client`, awaitable.

Stands on the same implementation of the protocol: one background thread for each client. Contents that are
streamed are read and written by a few helper threads, so the event loop never waits for a disk. Raises only
`VaultError`. Use each client from the event loop on which it was first used.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from walytis_vault.bus import requests as r
from walytis_vault.bus.exchange import ClosedError
from walytis_vault.bus.exchange_download import DownloadExchange
from walytis_vault.bus.exchange_subscription import SubscriptionExchange
from walytis_vault.bus.exchange_upload import UploadExchange
from walytis_vault.bus.exports import Export
from walytis_vault.bus.files import Source
from walytis_vault.bus.messages import (
    BackupInfo,
    BallotInfo,
    Change,
    Dropped,
    Exported,
    InvitationInfo,
    Published,
    Status,
)
from walytis_vault.bus.rows import Row, RowPage
from walytis_vault.bus.session import Pages, Progress, Session, receive, send
from walytis_vault.domain.errors import TimedOutError

T = TypeVar("T")
_TRANSFERS = 16


class AsyncSubscription(AsyncIterator[Change]):
    """Changes of a view, in order, without gap or repeat. Ends at `until`, or when it or its client is closed."""

    def __init__(self, exchange: SubscriptionExchange) -> None:
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._some = asyncio.Event()
        exchange.notify = self._notify

    def _notify(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._some.set)

    def __aiter__(self) -> AsyncSubscription:
        """Itself."""
        return self

    async def __anext__(self) -> Change:
        """Wait for the next change."""
        while True:
            self._some.clear()
            try:
                return self._exchange.next(timeout=0)
            except ClosedError as e:
                raise StopAsyncIteration from e
            except TimedOutError:
                await self._some.wait()

    async def aclose(self) -> None:
        """End it. Idempotent."""
        self._exchange.cancel()

    async def __aenter__(self) -> AsyncSubscription:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.aclose()


class AsyncClient:
    """A connection to the node of a vault. Arguments and verbs are those of `Client`."""

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        endpoint: str | None = None,
        timeout: float = 30.0,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        self._session = Session(home, endpoint=endpoint, timeout=timeout, key=key)
        self._threads = ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="bus-transfer")

    async def __aenter__(self) -> AsyncClient:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """End everything that is under way, within 2 seconds. Idempotent."""
        await asyncio.to_thread(self._session.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def publish(
        self,
        data: bytes | bytearray | memoryview | Path | BinaryIO,
        *,
        name: str | None = None,
        media_type: str | None = None,
        labels: tuple[str, ...] | list[str] = (),
        note: str | None = None,
        revises: str | None = None,
        expires: dt.datetime | dt.timedelta | float | None = None,
        progress: Progress | None = None,
        request_id: bytes | str | None = None,
    ) -> Published:
        """As `Client.publish`; `progress` is called on the event loop."""
        options = r.publish_options(
            data, name=name, media_type=media_type, labels=labels, note=note, revises=revises, expires=expires
        )
        key = r.request_id(request_id)
        source = await self._blocking(lambda: Source(data)) if isinstance(data, os.PathLike) else Source(data)
        try:
            if self._session.is_small(source.size):
                content = await self._blocking(source.read_all) if isinstance(data, os.PathLike) else source.read_all()
                done = await self._session.publish_small(content, options, key).wait()
                if progress is not None:
                    progress(len(content), len(content))
                return done
            upload = self._session.upload(source, options, key)
            report = self._on_loop(progress)
            return await self._transfer(upload, lambda: send(upload, source, report))
        finally:
            source.close()

    async def request(
        self,
        content_id: str,
        *,
        to: Path | BinaryIO | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> bytes | None:
        """As `Client.request`; `progress` is called on the event loop."""
        download = self._session.download(content_id, timeout)
        report = self._on_loop(progress)
        return await self._transfer(download, lambda: receive(download, to, report))

    async def forget(self, *content_ids: str, reason: str = "", request_id: bytes | str | None = None) -> BallotInfo:
        """As `Client.forget`."""
        return await self._session.call(r.forget(content_ids, reason), r.request_id(request_id)).wait()

    async def consent(self, ballot_id: str, *, request_id: bytes | str | None = None) -> BallotInfo:
        """As `Client.consent`."""
        return await self._session.call(r.consent(ballot_id), r.request_id(request_id)).wait()

    async def refuse(self, ballot_id: str, reason: str = "", *, request_id: bytes | str | None = None) -> BallotInfo:
        """As `Client.refuse`."""
        return await self._session.call(r.refuse(ballot_id, reason), r.request_id(request_id)).wait()

    async def withdraw(self, ballot_id: str, *, request_id: bytes | str | None = None) -> BallotInfo:
        """As `Client.withdraw`."""
        return await self._session.call(r.withdraw(ballot_id), r.request_id(request_id)).wait()

    async def retract(self, content_id: str, *, request_id: bytes | str | None = None) -> int:
        """As `Client.retract`."""
        return await self._session.call(r.retract(content_id), r.request_id(request_id)).wait()

    async def restore(self, content_id: str, *, request_id: bytes | str | None = None) -> int:
        """As `Client.restore`."""
        return await self._session.call(r.restore(content_id), r.request_id(request_id)).wait()

    async def query(
        self, view: str, *, limit: int | None = 100, as_of: r.AsOf | None = None, **filters: Any
    ) -> list[Row]:
        """As `Client.query`."""
        return [row async for row in self.rows(view, limit=limit, as_of=as_of, **filters)]

    async def rows(
        self, view: str, *, limit: int | None = None, as_of: r.AsOf | None = None, **filters: Any
    ) -> AsyncIterator[Row]:
        """As `Client.rows`."""
        pages = Pages(view, limit, filters, as_of=as_of)
        while (reply := self._session.ask(pages)) is not None:
            for row in pages.take(await reply.wait()):
                yield row

    async def page(
        self,
        view: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        as_of: r.AsOf | None = None,
        **filters: Any,
    ) -> RowPage:
        """As `Client.page`."""
        pages = Pages(view, limit, filters, cursor=cursor, as_of=as_of)
        rows: list[Row] = []
        while (reply := self._session.ask(pages)) is not None:
            rows += pages.take(await reply.wait())
        return RowPage(rows=tuple(rows), cursor=pages.cursor, position=pages.position)

    def subscribe(
        self, view: str = "events", *, after: int = 0, until: int | None = None, **filters: Any
    ) -> AsyncSubscription:
        """As `Client.subscribe`, for `async for`."""
        return AsyncSubscription(self._session.subscribe(view, after, until, filters))

    async def wait_for(
        self,
        position: int,
        *,
        timeout: float | None = None,
    ) -> int:
        """As `Client.wait_for`."""
        return await self._session.wait_for(position, timeout).wait()

    async def status(self) -> Status:
        """As `Client.status`."""
        return await self._session.call(r.STATUS).wait()

    async def members(self) -> list[Row]:
        """As `Client.members`."""
        return await self.query("members", limit=None)

    async def invite(self, *, expires: dt.datetime | dt.timedelta | float = 86_400.0, device: bool = False) -> str:
        """As `Client.invite`."""
        return await self._session.call(r.invite(expires, device), timeout=120.0).wait()

    async def invitations(self) -> list[InvitationInfo]:
        """As `Client.invitations`."""
        return await self._session.call(r.INVITATIONS).wait()

    async def revoke_invitation(self, invitation_id: str) -> InvitationInfo:
        """As `Client.revoke_invitation`."""
        return await self._session.call(r.revoke_invitation(invitation_id), timeout=120.0).wait()

    async def remove(
        self, did: str, *, reason: str = "", device: bool = False, request_id: bytes | str | None = None
    ) -> int:
        """As `Client.remove`."""
        ask = r.remove(did, reason, device)
        return await self._session.call(ask, r.request_id(request_id), timeout=120.0).wait()

    async def drop(self, *content_ids: str, force: bool = False) -> Dropped:
        """As `Client.drop`."""
        return await self._session.call(r.drop(content_ids, force), timeout=120.0).wait()

    async def lock(self) -> None:
        """As `Client.lock`."""
        await self._session.call(r.LOCK).wait()

    async def unlock(self, passphrase: str) -> None:
        """As `Client.unlock`."""
        await self._session.call(r.unlock(passphrase)).wait()

    async def change_passphrase(self, old: str | None, new: str | None) -> None:
        """As `Client.change_passphrase`."""
        await self._session.call(r.change_passphrase(old, new)).wait()

    async def audit(self, *, read_data: bool = False, timeout: float = 3600.0) -> Mapping[str, Any]:
        """As `Client.audit`."""
        report = await self._session.call(r.audit(read_data), timeout=timeout).wait()
        while report.get("cursor"):
            r.join_audit(report, await self._session.call(r.audit(read_data, report["cursor"])).wait())
        return report

    async def replay(self, view: str | None = None, *, timeout: float = 3600.0) -> Mapping[str, Any]:
        """As `Client.replay`."""
        return await self._session.call(r.replay(view), timeout=timeout).wait()

    async def export(self, to: Path | BinaryIO, *, progress: Progress | None = None) -> Exported:
        """As `Client.export`; `progress` is called on the event loop."""
        job = Export(self._session, to, self._on_loop(progress))
        return await self._transfer(job, job.run)

    async def backup(
        self,
        folder: str | os.PathLike[str],
        *,
        passphrase: str | None = None,
        with_key_file: bool = False,
        timeout: float = 86_400.0,
    ) -> BackupInfo:
        """As `Client.backup`."""
        return await self._session.call(r.backup(folder, passphrase, with_key_file), timeout=timeout).wait()

    async def retry(self, view: str | None = None, *, timeout: float = 3600.0) -> Mapping[str, Any]:
        """As `Client.retry`."""
        return await self._session.call(r.retry(view), timeout=timeout).wait()

    async def _blocking(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _transfer(self, exchange: UploadExchange | DownloadExchange | Export, work: Callable[[], T]) -> T:
        """Run a transfer on a helper thread; a cancelled task ends it, and waits until nothing is left of it."""
        future = asyncio.ensure_future(self._blocking(work))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            exchange.cancel()
            await asyncio.wait([future], timeout=2.0)
            future.exception() if future.done() and not future.cancelled() else None
            raise

    @staticmethod
    def _on_loop(progress: Progress | None) -> Progress | None:
        if progress is None:
            return None
        loop = asyncio.get_running_loop()
        return lambda done, total: _soon(loop, progress, done, total)


def _soon(loop: asyncio.AbstractEventLoop, progress: Progress, done: int, total: int | None) -> None:
    loop.call_soon_threadsafe(progress, done, total)


__all__ = ["AsyncClient", "AsyncSubscription"]
