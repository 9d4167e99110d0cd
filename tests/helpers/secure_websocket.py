"""A WebSocket over TLS, in one thread.

The blocking client of `websockets` receives in a thread of its own. On a TLS socket, which isn't made to be shared so,
what the other thread sends first never leaves now and then: once in a thousand connections on a busy machine.
"""

from __future__ import annotations

import asyncio
import ssl

from websockets.asyncio import client

from tests.helpers.patience import PATIENCE

__all__ = ["ask_over_websocket"]


def ask_over_websocket(port: int, context: ssl.SSLContext, message: str) -> str:
    """Connect to `/api/v1/ws` of a service on this machine, send one message, and return what comes."""

    async def ask() -> str:
        url = f"wss://localhost:{port}/api/v1/ws"
        async with client.connect(url, ssl=context, open_timeout=PATIENCE, proxy=None) as websocket:
            await websocket.send(message)
            return str(await asyncio.wait_for(websocket.recv(), PATIENCE))

    return asyncio.run(ask())
