"""The service's log, as text or JSON, and the access log.

Of the native lane and WebSockets only connections are logged, when they end, not single requests: there are millions.
No log line contains a key, a payload or a query.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from synap.terminal import LineFormatter, escaped

if TYPE_CHECKING:
    from synap.server.clients import Visit
    from synap.server.settings import ServerConfig

access = logging.getLogger("synap.access")

Send = Callable[[Any], Awaitable[None]]
FIELDS = "synap_fields"
"""The attribute of a log record with the access log's fields, for JSON."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return escaped(json.dumps(line, ensure_ascii=False, default=str))


def configure(config: ServerConfig) -> None:
    """Set up logging to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if config.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    access.setLevel(logging.INFO if config.access_log else logging.CRITICAL)


class AccessLog:
    """Logs one HTTP exchange: counts the bytes sent, and logs at the end."""

    __slots__ = ("_began", "_scope", "_send", "_sent", "_status")

    def __init__(self, scope: Any, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        self._status = 0
        self._sent = 0

    async def send(self, message: Any) -> None:
        """Forward an ASGI message, and count it."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        self._sent += len(message.get("body", b""))
        await self._send(message)

    def done(self, key: str) -> None:
        """Log the exchange. `key`: the name of the caller's key, where keys are used."""
        client = self._scope.get("client")
        path: str = self._scope["path"][:200]
        fields = {
            "address": str(client[0]) if client else "",
            "key": key,
            "method": self._scope["method"],
            "path": path,
            "status": self._status,
            "bytes": self._sent,
            "ms": round(1000 * (time.perf_counter() - self._began), 3),
        }
        # A path is untrusted: escaped, so that it stays on one line.
        shown = {**fields, "key": key or "-", "path": path if path.isprintable() else ascii(path)[1:-1]}
        line = "%(address)s %(key)s %(method)s %(path)s %(status)d %(bytes)d bytes %(ms).1f ms"
        access.info(line, shown, extra={FIELDS: fields})


def connection_ended(visit: Visit) -> None:
    """Log a connection of the native lane, or a WebSocket, that has ended."""
    if not access.isEnabledFor(logging.INFO):
        return
    seconds = round(time.time() - visit.since, 3)
    fields = {"address": visit.address, "key": visit.key, "lane": visit.lane, "seconds": seconds}
    line = "%s %s %s connection, %.1f s"
    access.info(line, visit.address, visit.key or "-", visit.lane, seconds, extra={FIELDS: fields})
