"""`AsyncSynapClient`, the async client."""

from __future__ import annotations

import ssl as _ssl
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

from typing_extensions import Never, Self

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.kv import AsyncKeyValue
from synap.client._async.lock import Lock
from synap.client._async.pipeline import Pipeline
from synap.client._async.pubsub import AsyncPubSub
from synap.client._async.queue import AsyncQueue
from synap.client._async.stream import AsyncStreams
from synap.client.batches import batch_request, only_reads
from synap.client.groups import AsyncGroup
from synap.client.handlers import AsyncHandlers
from synap.config import ClientConfig, resolve, ungiven, without_secret
from synap.errors import SynapError
from synap.lanes.io import monotonic
from synap.results import BatchResult, ClientInfo

Handler = TypeVar("Handler", bound=Callable[..., Any])


class AsyncSynapClient:
    """A client of the service, or of an engine in this process: key-value, queues, event streams, pub/sub.

    Takes a `ClientConfig`, or a URL and the fields of one as arguments. Nothing connects before the first call or
    `connect()`. Close it with `close()`, or use it with `async with`. Any number of calls may be in flight at once;
    cancelling one disturbs no other. It pickles as its configuration: an unpickled client opens connections of its own.

    Every method raises `SynapError` or one of its subclasses, and nothing else.
    """

    kv = AsyncGroup(AsyncKeyValue)
    queue = AsyncGroup(AsyncQueue)
    stream = AsyncGroup(AsyncStreams)
    pubsub = AsyncGroup(AsyncPubSub)

    def __init__(
        self,
        config: Union[ClientConfig, str, None] = None,
        *,
        url: Optional[str] = ungiven.url,
        api_key: Optional[str] = ungiven.api_key,
        timeout: float = ungiven.timeout,
        retries: int = ungiven.retries,
        pool_size: int = ungiven.pool_size,
        keep_alive: bool = ungiven.keep_alive,
        compression: bool = ungiven.compression,
        format: str = ungiven.format,
        retry_delay: float = ungiven.retry_delay,
        retry_backoff: float = ungiven.retry_backoff,
        retry_max_delay: float = ungiven.retry_max_delay,
        transport: str = ungiven.transport,
        ssl: Optional[_ssl.SSLContext] = ungiven.ssl,
        buffer: int = ungiven.buffer,
        fsync: str = ungiven.fsync,
        clock: Optional[Callable[[], float]] = ungiven.clock,
        engine: Optional[Mapping[str, Any]] = ungiven.engine,
        spin: Union[bool, float] = ungiven.spin,
        tls_ca: Optional[str] = ungiven.tls_ca,
        tls_cert: Optional[str] = ungiven.tls_cert,
        tls_key: Optional[str] = ungiven.tls_key,
        **unknown: Never,
    ) -> None:
        """Make a client from a `ClientConfig`, or from a URL and the fields of one as keyword arguments.

        Raises `INVALID_REQUEST` for an unknown option (with the nearest known one), or an invalid value.
        """
        # The arguments are the configuration's fields.
        given = {name: value for name, value in locals().items() if name in ClientConfig.__dataclass_fields__}
        self.config = resolve(config, {**given, **unknown})
        self._handlers = AsyncHandlers()
        self._calls = AsyncCalls(self.config, self._handlers)

    # ------------------------------------------------------------------------------------------ connection

    async def connect(self) -> None:
        """Connect now, so that errors surface here. Without this the first call connects."""
        await self._calls.connect()

    async def close(self) -> None:
        """End all subscriptions and connections, for good. Calling it again does nothing."""
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def on(self, event: str) -> Callable[[Handler], Handler]:
        """Return a decorator that has a function, or a coroutine function, called at each `event`.

        'connected': called without arguments. 'disconnected': with the reason, a text. 'error': with the exception of a
        callback that raised, or that ended a subscription. What a handler raises is logged.
        """
        self._handlers.check(event)

        def add(function: Handler) -> Handler:
            self._handlers.add(event, function)
            return function

        return add

    # ------------------------------------------------------------------------------------------ the service itself

    async def ping(self) -> float:
        """Return the round-trip time to the service in seconds."""
        await self._calls.connect()
        began = monotonic()
        await self._calls.health()
        return monotonic() - began

    async def health(self) -> Dict[str, Any]:
        """Return the health of the service.

        `status` is 'ok', 'degraded' (reads only; `reason` says why) or 'draining' (about to stop). `uptime_secs` is a
        number, `durable` whether it stores data on disk; a service adds its `version`.
        """
        return await self._calls.health()

    async def stats(self) -> Dict[str, Any]:
        """Return the service's statistics; needs an admin key where the service asks for keys."""
        figures: Dict[str, Any] = await self._calls.call(c.ADMIN_STATS, c.AdminStats())
        return figures

    async def settings(self) -> Dict[str, Any]:
        """Return the service's settings without secrets; needs an admin key where the service asks for keys."""
        found: Dict[str, Any] = await self._calls.call(c.ADMIN_CONFIG, c.AdminConfig())
        return found

    async def clients(self, *, disconnect: Optional[int] = None) -> List[ClientInfo]:
        """List the connections to the service; needs an admin key where the service asks for keys.

        `disconnect`: the `id` of a connection to close first. Its waiting requests and subscriptions end; a client of
        this library reconnects by itself.
        """
        found: List[ClientInfo] = []
        while True:
            after = found[-1].id if found else None
            page: c.ClientsAnswer = await self._calls.call(
                c.ADMIN_CLIENTS, c.AdminClients(after=after, disconnect=disconnect)
            )
            found += page.clients
            if not page.has_more:
                return found

    async def shutdown(self) -> None:
        """Ask the service to stop, once requests in flight are answered; needs an admin key where it asks for keys."""
        await self._calls.call(c.ADMIN_SHUTDOWN, c.AdminShutdown())

    async def batch(self, commands: Sequence[Mapping[str, Any]], *, atomic: bool = False) -> List[BatchResult]:
        """Run `commands`, each `{'command': name, 'payload': {…}}`, in order and as one request.

        Returns a result for each, in order. One that fails doesn't stop the others, unless `atomic` is set: then all
        take effect or none, the failed one has its error and the others `BATCH_ABORTED`. Commands that wait or
        subscribe are refused.
        """
        request = batch_request(commands, atomic, self.config.format)
        if not request.commands:
            return []
        command = c.READ_BATCH if only_reads(request) else c.BATCH
        answer: c.BatchResults = await self._calls.call(command, request)
        return answer.results

    def lock(self, name: str, *, ttl: int = 30, wait: Optional[float] = None) -> Lock:
        """Return the distributed lock `name`: `async with client.lock('report') as lock:`.

        It is held for `ttl` whole seconds (1 or more, default 30) and renewed while the block runs; `LockLostError`
        where it was lost all the same. `wait`: seconds to try (None: as long as it takes), then `TimeoutError`.
        `lock.fence` is a number that grows with each holder.
        """
        return Lock(self._calls, name, ttl, wait)

    def pipeline(self, *, atomic: bool = False) -> Pipeline:
        """Return a batch with the client's methods: `async with client.pipeline() as p: p.kv.set('x', 1)`.

        Each method returns a handle, whose `result()` is available after the block. `atomic` as for `batch`.
        """
        return Pipeline(self._calls, atomic)

    def __reduce__(self) -> Tuple[Any, ...]:
        if self.config.ssl is not None:
            raise SynapError(
                "INVALID_REQUEST",
                "a client with an ssl.SSLContext can't be pickled: give it tls_ca, tls_cert and tls_key instead",
                {"option": "ssl"},
            )
        return type(self), (self.config,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {without_secret(self.config.url or '')}>"
