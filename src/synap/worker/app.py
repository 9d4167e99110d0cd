"""`Worker`: functions by the queues they work on, and the process that runs them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import timedelta, tzinfo
from time import time
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, TypeVar, Union

from synap.client._async.client import AsyncSynapClient
from synap.errors import SynapError, invalid
from synap.wire.typed import check_type
from synap.worker.events import Events, Hook
from synap.worker.handlers import Handler, parameters, place
from synap.worker.message import Message
from synap.worker.periodic import Job
from synap.worker.results import Enqueued
from synap.worker.runner import Drained, Options, Runner
from synap.worker.schedule import Cron, Schedule, every

__all__ = ["Worker"]

F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Hook)
T = TypeVar("T")


class Worker:
    """Runs functions for the messages of queues, and by the clock.

        worker = Worker(AsyncSynapClient())

        @worker.handles("emails", type=Email, retries=5, timeout=60)
        async def send(email: Email, message: Message) -> None: ...

        asyncio.run(worker.run())           # or: synap worker myapp.jobs:worker --processes 4

    `client`: an `AsyncSynapClient`, or a URL; left out, `SYNAP_URL`. `concurrency`: messages worked on at once in this
    process. `lease`: seconds a lease lasts; it is renewed while a handler runs, so this is how long the messages of a
    process that was killed are missing. `grace`: seconds that handlers have to end when the worker is stopped.
    `processes`: processes for handlers with `pool='process'`, by default one for each core.

    A message is acknowledged when its handler returns, and given back with a growing delay when it raises. At least
    once: a handler may see a message again, after a crash or a lost lease. What it puts into `message.pipeline()`
    takes effect exactly once, together with the acknowledgement.
    """

    def __init__(
        self,
        client: Union[AsyncSynapClient, str, None] = None,
        *,
        concurrency: int = 20,
        lease: float = 30.0,
        grace: float = 30.0,
        processes: Optional[int] = None,
        clock: Callable[[], float] = time,
    ) -> None:
        if client is None or isinstance(client, str):
            client = AsyncSynapClient(url=client)
        if not isinstance(client, AsyncSynapClient):
            raise invalid("client", "an AsyncSynapClient or a URL", client)
        if not isinstance(concurrency, int) or not 1 <= concurrency <= 10_000:
            raise invalid("concurrency", "1..10000", concurrency)
        if not 0 < lease <= 86_400:
            raise invalid("lease", "more than 0 and at most 86400 seconds", lease)
        self.client = client
        self.concurrency = concurrency
        self.lease = lease
        self.grace = grace
        self.processes = processes or os.cpu_count() or 1
        self._clock = clock
        self._handlers: Dict[str, Handler] = {}
        self._jobs: Dict[str, Job] = {}
        self._by_function: Dict[Callable[..., Any], Handler] = {}
        self._events = Events()
        self._runner: Optional[Runner] = None
        self.lingers = False
        """Whether, after `run`, a thread still runs a handler that was given up: only the process's end stops it."""

    # ------------------------------------------------------------------------------------------ what is to be done

    def handles(
        self,
        queue: str,
        *,
        type: Any = None,
        retries: Optional[int] = None,
        retry_delay: float = 1.0,
        backoff: float = 2.0,
        retry_max_delay: float = 3600.0,
        timeout: Optional[float] = None,
        pool: Optional[str] = None,
        result_ttl: Optional[int] = None,
        name: Optional[str] = None,
    ) -> Callable[[F], F]:
        """Return a decorator that has a function called for each message of a queue: `function(value, message)`.

        A function with one parameter gets the value alone. `type`: what the value is to be; one that doesn't fit is a
        dead letter. `retries`: times a message is tried again, set as the queue's `max_retries`; left out, the queue's
        own. The n-th try waits `retry_delay` · `backoff` ** (n - 1) seconds, `retry_max_delay` at most; raise
        `Retry(delay)` or `Reject()` to decide yourself. `timeout`: seconds after which the handler is cancelled (a
        thread can't be: it is given up) and its message given back. `pool`: 'loop', 'thread' or 'process'; left out,
        coroutine functions run in the event loop and plain ones in threads. `result_ttl`: seconds to keep what it
        returns, for `enqueue`.
        """
        if not isinstance(queue, str) or not queue:
            raise invalid("queue", "a string of 1 to 256 bytes of UTF-8", queue)
        if type is not None:
            check_type(type)
        _check_seconds("timeout", timeout)
        _check_seconds("retry_delay", retry_delay, zero=True)

        def add(function: F) -> F:
            handler = Handler(
                name or _name(function),
                queue,
                function,
                type,
                retries,
                retry_delay,
                backoff,
                retry_max_delay,
                timeout,
                place(function, pool),
                result_ttl,
                parameters(function) > 1,
            )
            self._add(function, handler)
            return function

        return add

    def every(
        self,
        interval: Union[str, float, timedelta],
        *,
        name: Optional[str] = None,
        timeout: Optional[float] = None,
        pool: Optional[str] = None,
    ) -> Callable[[F], F]:
        """Return a decorator that has a function called every so often, once across all workers.

        `interval`: seconds, a `timedelta`, or a text such as '90s', '5m', '1h30m'. The times are multiples of it since
        1970, in UTC. One that was missed because no worker ran is made up for once. `name`: what the job is known as to
        all workers, by default the function's own name with its module.
        """
        return self._periodic(every(interval), name, timeout, pool)

    def cron(
        self,
        expression: str,
        *,
        timezone: Optional[tzinfo] = None,
        name: Optional[str] = None,
        timeout: Optional[float] = None,
        pool: Optional[str] = None,
    ) -> Callable[[F], F]:
        """Return a decorator that has a function called at the times of a cron expression, once across all workers.

        `timezone`: what the expression's hours and days are in, UTC unless given. The rest is as for `every`.
        """
        return self._periodic(Cron(expression, timezone), name, timeout, pool)

    def _periodic(
        self, schedule: Schedule, name: Optional[str], timeout: Optional[float], pool: Optional[str]
    ) -> Callable[[F], F]:
        _check_seconds("timeout", timeout)

        def add(function: F) -> F:
            known_as = name or _name(function)
            handler = Handler(
                known_as,
                f"periodic:{known_as}",
                function,
                timeout=timeout,
                pool=place(function, pool),
                takes_message=parameters(function) > 0,
            )
            self._add(function, handler)
            self._jobs[handler.queue] = Job(handler, schedule, self._clock)
            return function

        return add

    def _add(self, function: Callable[..., Any], handler: Handler) -> None:
        if handler.queue in self._handlers:
            known = self._handlers[handler.queue].name
            raise SynapError("INVALID_REQUEST", f"{known} handles the queue {handler.queue!r} already")
        self._handlers[handler.queue] = handler
        self._by_function[function] = handler

    def on(self, event: str) -> Callable[[H], H]:
        """Return a decorator that lets a function hear of an event, as a `WorkerEvent`.

        'begin' before a handler runs, in its own task, so that context variables set there reach it; then one of
        'done', 'retried', 'rejected' and 'lost'. 'started', 'stopping' and 'stopped' of the worker itself.
        """

        def add(hook: H) -> H:
            self._events.add(event, hook)
            return hook

        return add

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by queue, those of periodic jobs included."""
        return dict(self._handlers)

    # ------------------------------------------------------------------------------------------ giving work

    async def enqueue(
        self,
        function: Union[Callable[[T], Any], Callable[[T, Message], Any]],
        value: T,
        *,
        delay: float = 0,
        priority: int = 5,
        headers: Optional[Dict[str, str]] = None,
    ) -> Enqueued:
        """Publish a message for a handler: `await worker.enqueue(send, Email(…))`; raises what `publish` does."""
        handler = self._by_function.get(function)
        if handler is None:
            raise SynapError("INVALID_REQUEST", f"{function!r} handles no queue of this worker")
        published = await self.client.queue.publish(handler.queue, value, priority, headers, delay=delay)
        return Enqueued(published.message_id, handler.queue, self.client, handler.result_ttl is not None)

    # ------------------------------------------------------------------------------------------ working

    async def run(self, *, handle_signals: bool = True, queues: Optional[Collection[str]] = None) -> None:
        """Work until `stop` is called, or SIGTERM or SIGINT comes; the second one doesn't wait any more.

        Stopping takes nothing new, waits `grace` seconds for handlers that run, and gives the rest back at once. A
        service that can't be reached is waited for. `queues`: only these of the handlers.
        """
        runner = self._begin(queues)
        loop = asyncio.get_running_loop()
        handled: List[signal.Signals] = []
        if handle_signals and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                try:
                    loop.add_signal_handler(number, runner.stop)
                    handled.append(number)
                except NotImplementedError:  # Windows
                    break
        try:
            await runner.run()
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
            self.lingers = runner.lingers
            self._runner = None

    def stop(self) -> None:
        """Let `run` end, from the same event loop."""
        if self._runner is not None:
            self._runner.stop()

    async def run_once(self, *, queues: Optional[Collection[str]] = None) -> Drained:
        """Handle what is ready now, one message after the other, and return what became of it. For tests.

        Everything happens in this task: plain functions are called right here, without a thread. A message that is
        given back waits for its delay; with a test clock, move it and call this again.
        """
        try:
            return await self._begin(queues).run_once()
        finally:
            self._runner = None

    def _begin(self, queues: Optional[Collection[str]]) -> Runner:
        if self._runner is not None:
            raise SynapError("INVALID_REQUEST", "this worker runs already")
        handlers = self._handlers if queues is None else {q: h for q, h in self._handlers.items() if q in queues}
        missing = set(queues or ()) - set(handlers)
        if missing or not handlers:
            what = f"the queue {sorted(missing)[0]!r}" if missing else "any queue"
            raise SynapError("INVALID_REQUEST", f"this worker has no handler for {what}")
        options = Options(self.concurrency, self.lease, self.grace, self.processes)
        self._runner = Runner(self.client, handlers, self._jobs, options, self._events)
        return self._runner

    def __repr__(self) -> str:
        return f"<Worker of {self.client.config.url}: {', '.join(self._handlers) or 'no handlers'}>"


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def _check_seconds(name: str, value: Optional[float], *, zero: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (value == 0 and not zero):
        raise invalid(name, "a number of seconds", value)
