"""The service: one port that speaks HTTP, WebSocket, server-sent events and the native lane. Python 3.10 and newer.

`settings` is what it can be told, `run` puts it together, `drain` stops it, `service` is what all lanes share; `sniff`
finds out what a connection speaks and hands it to `native` or to uvicorn (`uvicorn_glue`), which calls `app`, and that
`websocket` and `sse`.
"""

from synap.server.run import serve
from synap.server.settings import OPTIONS, Option, ServerConfig, load

__all__ = ["OPTIONS", "Option", "ServerConfig", "load", "serve"]
