"""Serve contents over HTTP on loopback, with asyncio alone: `python examples/web_hook.py [--port 8080] [--home DIR]`.

`GET /` lists the catalogue as JSON, `GET /CONTENT_ID` gives a content. Errors of the vault become HTTP states.
Anyone on this machine who can reach the port can read: give it a key of its own that may only read
(`walytis-vault client add web --verbs read`, then `--key web`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from pathlib import Path

from walytis_vault.async_client import AsyncClient
from walytis_vault.domain.errors import (
    ForgottenError,
    MisuseError,
    NotYetAvailableError,
    PermissionRefusedError,
    UnknownIdError,
    VaultError,
)

STATES = {
    UnknownIdError: "404 Not Found",
    ForgottenError: "410 Gone",
    PermissionRefusedError: "403 Forbidden",
    MisuseError: "400 Bad Request",
    NotYetAvailableError: "503 Service Unavailable",
}


async def answer(client: AsyncClient, target: str) -> tuple[str, str, bytes]:
    """State, type and body for a path."""
    try:
        if target == "/":
            rows = [row.as_dict() async for row in client.rows("catalogue")]
            return "200 OK", "application/json", json.dumps(rows).encode()
        body = await client.request(target.removeprefix("/"))
        return "200 OK", "application/octet-stream", body or b""
    except VaultError as e:
        state = next((s for kind, s in STATES.items() if isinstance(e, kind)), "500 Internal Server Error")
        return state, "text/plain; charset=utf-8", f"{e}\n".encode()


async def handle(client: AsyncClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, one request."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = (head.split("\r\n")[0] + "  ").split(" ", 2)
        if method == "GET":
            state, kind, body = await answer(client, target)
        else:
            state, kind, body = "405 Method Not Allowed", "text/plain", b"GET only\n"
        writer.write(f"HTTP/1.1 {state}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n".encode())
        writer.write(b"X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n" + body)
        await writer.drain()
    writer.close()


async def serve(client: AsyncClient, port: int) -> asyncio.Server:
    """Listen on loopback."""
    return await asyncio.start_server(lambda r, w: handle(client, r, w), "127.0.0.1", port, limit=16 << 10)


async def run(home: Path | None, key: str | None, port: int) -> None:
    """Serve until cancelled."""
    async with AsyncClient(home, key=key) as client:
        server = await serve(client, port)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
        async with server:
            await server.serve_forever()


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--key")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(args.home, args.key, args.port))


if __name__ == "__main__":
    main()
