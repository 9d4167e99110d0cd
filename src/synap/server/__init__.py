"""The service: one port that speaks HTTP, WebSocket, server-sent events and the native lane. Python 3.10 and newer.

`settings` is what it can be told, `run` puts it together, `service` is what all lanes share; `front` finds out what a
connection speaks and hands it to `native` or to uvicorn, which calls `http`, `websocket` and `events`.
"""

from synap.server.run import serve
from synap.server.settings import OPTIONS, Option, ServerConfig, load

__all__ = ["OPTIONS", "Option", "ServerConfig", "load", "serve"]
