"""The part of the `VaultService` in memory through which contents come and go."""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import TYPE_CHECKING

from walytis_vault.bus.messages import (
    Published,
    PublishOptions,
    RequestKey,
)
from walytis_vault.domain.errors import (
    ForgottenError,
    MisuseError,
)

if TYPE_CHECKING:
    from support.memory_service import MemoryService

PIECE = 1 << 20


class MemorySession:
    """A publish into memory."""

    def __init__(self, service: MemoryService, options: PublishOptions, key: RequestKey | None) -> None:
        self._service = service
        self._options = options
        self._key = key
        self._data = bytearray()
        self._size = 0
        self._hash = hashlib.sha256()
        self._id = secrets.token_hex(16)
        self.state = "open"

    @property
    def content_id(self) -> str:
        return self._id

    def write(self, data: bytes | memoryview) -> None:
        assert self.state == "open"
        self._hash.update(data)
        self._size += len(data)
        if self._service.keep_bytes:
            self._data += data

    def commit(self, *, latency: float | None = None) -> Published:
        assert self.state == "open"
        self.state = "committed"
        self._service.sessions.discard(self)
        return self._service.commit_publish(self, self._options, self._key, bytes(self._data), latency=latency)

    @property
    def size(self) -> int:
        return self._size

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def abort(self) -> None:
        if self.state == "open":
            self.state = "aborted"
            self._data.clear()
            self._service.sessions.discard(self)
            self._service.aborted += 1


class MemoryReader:
    """A content being read out of memory, or made on the spot when it is a large pretended one."""

    def __init__(self, service: MemoryService, content_id: str) -> None:
        self._service = service
        self._id = content_id
        self._at = 0
        self.closed = False
        self.here = content_id not in service.coming
        row = service.contents[content_id]
        self._length = int(row["size"])
        service.readers.add(self)

    @property
    def length(self) -> int:
        return self._length

    def read(self) -> bytes:
        assert not self.closed or not self.here
        while self._at and self._id in self._service.coming:
            if self.closed:
                raise MisuseError("this content was closed")
            threading.Event().wait(0.01)
        data = self._service.blobs.get(self._id)
        if data is None:
            if self._id not in self._service.pretended:
                raise ForgottenError("the content was forgotten meanwhile")
            size = min(PIECE, self._length - self._at)
            piece = self._service.filler[:size]
        else:
            piece = data[self._at : self._at + PIECE]
        self._at += len(piece)
        self._service.bytes_read += len(piece)
        return piece

    def close(self) -> None:
        self.closed = True
        self._service.readers.discard(self)
