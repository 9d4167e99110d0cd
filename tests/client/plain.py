"""A plain HTTP server with a real engine behind it that has never heard of the native lane."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, List, Optional, Type

from synap.errors import SynapError, http_status
from synap.host.inprocess import enter, leave
from synap.lanes.inprocess.session import PENDING, LocalSession
from synap.wire.envelope import WIRES

__all__ = ["PlainServer"]


class PlainServer:
    """Listens on a free loopback port; `offers` counts how often the native lane was asked for."""

    def __init__(self, status: int = 404) -> None:
        self.status = status
        """What an offer of the native lane is answered with."""
        self.offers = 0
        self.requests: List[str] = []
        self._local = enter("memory", "", {})
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/api/v1/native":
                    owner.offers += 1
                    self.send_error(owner.status)
                else:
                    owner.say(self, b'{"status":"ok"}')

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.say(self, *owner.answer(body))

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def say(self, handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
        """Send an answer."""
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def answer(self, body: bytes) -> Any:
        """Do a request."""
        wire = WIRES["json"]
        request_id = ""
        try:
            given, command, payload = wire.read_request(body)
            request_id = given or ""
            self.requests.append(command.name)
            host = self._local.host
            session = LocalSession(host, wire.codec, "")
            with self._local.lock:
                host.execute(session, 1, command, payload, decoded=True)
                host.end_turn()
            if session.error is not None:
                raise session.error
            assert session.outcome is not PENDING
            return (wire.answer(request_id, session.outcome),)
        except SynapError as error:
            return wire.error(request_id, error), http_status(error.code)

    def __enter__(self) -> PlainServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        leave(self._local)
