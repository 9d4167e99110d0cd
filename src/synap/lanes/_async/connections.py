"""HTTP/1.1 connections to one service: one exchange at a time on each, and a pool of them.

The protocol itself is h11's. What is decided here: how long to wait, how much to take in, and which connections may be
used again. One on which an exchange did not come to its end is closed, so that no answer can ever reach another
request.
"""

from __future__ import annotations

import ssl
from typing import Callable, List, NamedTuple, Optional, Set, Union

import h11

from synap.config import ClientConfig, Target
from synap.lanes.io import AsyncSemaphore, AsyncStream, async_home, monotonic
from synap.wire.frames import MAX_ANSWER

__all__ = ["Answer", "AsyncPool", "Broken"]

MAX_HEAD = 64 * 1024
"""Bytes the head of an answer may have."""

CHUNK = 128 * 1024


class Answer(NamedTuple):
    """An answer that came whole."""

    status: int
    content_type: str
    encoding: str
    retry_after: str
    body: bytes


class Broken(Exception):
    """An exchange did not come to its end.

    `reason`: what went wrong below. `sent`: whether anything of the request may have arrived. `silent`: whether not a
    byte of an answer came.
    """

    def __init__(self, reason: Union[str, BaseException], *, sent: bool, silent: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.silent = silent

    @property
    def timed_out(self) -> bool:
        """Whether time ran out."""
        return isinstance(self.reason, TimeoutError)


class Unconnected(Broken):
    """No connection came about."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason, sent=False)


class Crowded(Broken):
    """No connection of the pool became free in time."""

    def __init__(self) -> None:
        super().__init__(TimeoutError("all connections are busy"), sent=False)


class Oversized(Broken):
    """The answer is larger than anybody should hold in memory."""

    def __init__(self) -> None:
        super().__init__(f"the answer has more than {MAX_ANSWER // 2**20} MiB", sent=True, silent=False)


class AsyncConnection:
    """One connection; after each exchange `reusable` says whether there may be another."""

    __slots__ = ("_http", "reusable", "stream")

    def __init__(self, stream: AsyncStream) -> None:
        self.stream = stream
        self.reusable = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def exchange(self, request: h11.Request, body: bytes, deadline: Optional[float]) -> Answer:
        """Send a request and receive its answer. Raises `Broken`, the connection being closed then."""
        self.reusable = False
        http = self._http
        silent = True
        try:
            head = http.send(request) or b""
            if body:
                head += http.send(h11.Data(data=body)) or b""
            await self.stream.send(head + (http.send(h11.EndOfMessage()) or b""), _left(deadline))
            response: Optional[h11.Response] = None
            parts: List[bytes] = []
            size = 0
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    data = await self.stream.receive(CHUNK, _left(deadline))
                    silent = silent and not data
                    http.receive_data(data)
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                    if size > MAX_ANSWER:
                        raise Oversized
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    raise h11.RemoteProtocolError("the connection ended")
        except Broken:
            self.stream.abort()
            raise
        except h11.RemoteProtocolError as error:
            self.stream.abort()
            reason = "the other side closed the connection" if silent else f"no whole HTTP answer came: {error}"
            raise Broken(reason, sent=True, silent=silent) from None
        except OSError as error:
            self.stream.abort()
            raise Broken(error, sent=True, silent=silent) from None
        except BaseException:
            # Cancelled, most likely. Whatever the service still says belongs to nobody.
            self.stream.abort()
            raise
        if http.our_state is h11.DONE and http.their_state is h11.DONE and http.trailing_data == (b"", False):
            http.start_next_cycle()
            self.reusable = True
        assert response is not None
        return _answer(response, b"".join(parts))


def _answer(response: h11.Response, body: bytes) -> Answer:
    content_type = encoding = retry_after = ""
    for name, value in response.headers:
        if name == b"content-type":
            content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
        elif name == b"retry-after":
            retry_after = value.decode("latin-1").strip()
    return Answer(response.status_code, content_type, encoding, retry_after, body)


def _left(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(deadline - monotonic(), 0.0)


class AsyncPool:
    """Connections to one service: at most `pool_size` of them, beside those whose request may wait for long."""

    def __init__(self, config: ClientConfig, target: Target, opened: Callable[[], None]) -> None:
        self._config = config
        self._target = target
        self._opened = opened
        self._context: Optional[ssl.SSLContext] = None
        self._forget()

    def _forget(self) -> None:
        self._places = AsyncSemaphore(self._config.pool_size)
        self._idle: List[AsyncConnection] = []
        self._busy: Set[AsyncConnection] = set()
        self._home: Optional[object] = None

    async def exchange(
        self,
        request: h11.Request,
        body: bytes = b"",
        *,
        deadline: Optional[float],
        repeatable: bool = False,
        lingers: bool = False,
    ) -> Answer:
        """Send a request on a free connection and receive its answer. Raises `Broken`.

        `repeatable`: doing it twice is as good as once, so that a connection which the service closed while it was
        idle is replaced without a word. `lingers`: it may wait for long, so it takes none of the pool's places.
        """
        if self._home != async_home():
            if self._home is not None:
                self.abandon()
            self._home = async_home()
        places = self._places
        if lingers:
            return await self._exchange(request, body, deadline, repeatable)
        if not await places.acquire(_left(deadline)):
            raise Crowded
        try:
            return await self._exchange(request, body, deadline, repeatable)
        finally:
            places.release()

    async def _exchange(self, request: h11.Request, body: bytes, deadline: Optional[float], repeatable: bool) -> Answer:
        connection = self._take()
        if connection is not None:
            try:
                return await self._use(connection, request, body, deadline)
            except Broken as broken:
                if not repeatable or not broken.silent or broken.timed_out:
                    raise
        return await self._use(await self._open(deadline), request, body, deadline)

    async def _use(
        self,
        connection: AsyncConnection,
        request: h11.Request,
        body: bytes,
        deadline: Optional[float],
    ) -> Answer:
        busy, idle = self._busy, self._idle
        busy.add(connection)
        try:
            return await connection.exchange(request, body, deadline)
        finally:
            busy.discard(connection)
            if connection.reusable and len(idle) < self._config.pool_size and idle is self._idle:
                idle.append(connection)
            else:
                connection.stream.abort()

    def _take(self) -> Optional[AsyncConnection]:
        idle = self._idle
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if not connection.stream.stale:
                return connection
            connection.stream.abort()

    async def _open(self, deadline: Optional[float]) -> AsyncConnection:
        target = self._target
        try:
            stream = await AsyncStream.connect(target.host, target.port, self.context(), _left(deadline))
        except (OSError, UnicodeError) as error:  # a host name may be none at all
            raise Unconnected(error) from None
        self._opened()
        return AsyncConnection(stream)

    def context(self) -> Optional[ssl.SSLContext]:
        """Return what TLS is to be done with, None where there is none."""
        if self._target.scheme != "https":
            return None
        if self._context is None:
            self._context = self._config.ssl or ssl.create_default_context()
        return self._context

    async def close(self) -> None:
        """Close all connections; exchanges under way break."""
        idle, busy = self._idle, self._busy
        self._idle, self._busy = [], set()
        for connection in list(busy):
            connection.stream.abort()
        for connection in idle:
            await connection.stream.close()

    def abandon(self) -> None:
        """Forget all connections without a word on them."""
        for connection in [*self._idle, *self._busy]:
            connection.stream.detach()
        self._forget()
