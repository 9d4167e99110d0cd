"""`Worker`: the handlers of queues and of periodic jobs, and the methods that run them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import timedelta, tzinfo
from functools import partial
from math import inf
from time import time
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, TypeVar, Union

from synap.client._async.client import AsyncSynapClient
from synap.errors import SynapError, invalid
from synap.wire.typed import check_type
from synap.worker.events import Events, Hook
from synap.worker.handlers import Handler, check_number, parameter_count, pool_of
from synap.worker.message import Message
from synap.worker.outcomes import Drained
from synap.worker.periodic import Job
from synap.worker.results import Enqueued
from synap.worker.runner import Options, Runner
from synap.worker.schedule import Cron, Schedule, every

F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Hook)
T = TypeVar("T")


MAX_QUEUES = 100
"""The most queues of a worker: those that one request waits for."""


class Worker:
    """Runs functions for the messages of queues, and on schedules.

        worker = Worker(AsyncSynapClient())

        @worker.handles("emails", type=Email, retries=5, timeout=60)
        async def send(email: Email, message: Message) -> None: ...

        asyncio.run(worker.run())           # or: synap worker myapp.jobs:worker --processes 4

    `client`: an `AsyncSynapClient`, or a URL, by default `SYNAP_URL`. `concurrency`: messages handled at once in this
    process. `lease`: seconds a lease lasts. It is renewed while a handler runs, so this is how long the messages of a
    killed process stay unavailable. `grace`: seconds that handlers have to finish when the worker is stopped.
    `processes`: processes for handlers with `pool='process'`, by default one for each core. `clock`: returns Unix
    seconds, for periodic jobs. Raises `INVALID_PAYLOAD` for an option out of range.

    A message is acknowledged when its handler returns, and requeued with exponential backoff when it raises. Delivery
    is at least once: a handler may get a message again after a crash or a lost lease. What it puts into
    `message.pipeline()` takes effect exactly once, together with the acknowledgement.
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
        if type(concurrency) is not int or not 1 <= concurrency <= 10_000:
            raise invalid("concurrency", "1..10000", concurrency)
        if processes is not None and (type(processes) is not int or processes < 0):
            raise invalid("processes", "a whole number, or None", processes)
        if grace != inf:
            check_number("grace", grace)
        check_number("lease", lease)
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
        """Whether, after `run`, a thread still runs a handler that timed out; only the process's end stops it."""

    # ------------------------------------------------------------------------------------------ handlers

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
        """Return a decorator: the function is called for each message of `queue` as `function(value, message)`.

        A function with one parameter gets the value alone. `type`: the type the value is converted to; a value that
        doesn't fit becomes a dead letter. `retries`: how often a message is retried, set as the queue's `max_retries`
        at the start and every five minutes; by default the queue's own. The n-th retry waits `retry_delay` ·
        `backoff` ** (n - 1) seconds, at most `retry_max_delay` seconds; raise `Retry(delay)` or `Reject()` to decide
        yourself. `timeout`: seconds after which the handler is cancelled (a thread is left to run) and its message
        requeued; by default none. `pool`: 'loop', 'thread' or 'process'; by default 'loop' for coroutine functions
        and 'thread' for plain ones. `result_ttl`: seconds to keep what it returns, for `Enqueued.result`; by default
        it isn't kept. `name`: the handler's name in logs and events, by default the function's with its module.
        Raises `INVALID_PAYLOAD` for an argument out of range, `INVALID_REQUEST` for a queue that has a handler.
        """
        if not isinstance(queue, str) or not queue:
            raise invalid("queue", "a string of 1 to 256 bytes of UTF-8", queue)
        if type is not None:
            check_type(type)
        _check_timeout(timeout)
        for field, value in (("retry_delay", retry_delay), ("backoff", backoff), ("retry_max_delay", retry_max_delay)):
            check_number(field, value)
        for field, count, least in (("retries", retries, 0), ("result_ttl", result_ttl, 1)):
            if count is not None and (not isinstance(count, int) or count < least):
                raise invalid(field, f"a whole number, {least} or more", count)

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
                pool_of(function, pool),
                result_ttl,
                parameter_count(function) > 1,
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
        """Return a decorator: the function is called periodically, once across all workers.

        `interval`: seconds, a `timedelta`, or a text such as '90s', '5m', '1h30m'. The times are multiples of it since
        1970, in UTC. Ticks that were missed while no worker ran are made up for by one call. `name`: identifies the job
        across workers, by default the function's own name with its module. `timeout` (seconds), `pool`: as for
        `handles`. Raises `INVALID_REQUEST` for an interval that can't be read.
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
        """Return a decorator: the function is called at the times of a cron expression, once across all workers.

        `expression`: five fields, or six with seconds at the end. `timezone`: of its hours and days, by default UTC.
        `name`, `timeout` (seconds), `pool`: as for `every`. Raises `INVALID_REQUEST` for an invalid expression, and
        without croniter (the extra `worker`).
        """
        return self._periodic(Cron(expression, timezone), name, timeout, pool)

    def _periodic(
        self, schedule: Schedule, name: Optional[str], timeout: Optional[float], pool: Optional[str]
    ) -> Callable[[F], F]:
        _check_timeout(timeout)

        def add(function: F) -> F:
            known_as = name or _name(function)
            handler = Handler(
                known_as,
                f"periodic:{known_as}",
                function,
                timeout=timeout,
                pool=pool_of(function, pool),
                takes_message=parameter_count(function) > 0,
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
        """Return a decorator: the function is called with a `WorkerEvent` for each event of that name.

        `event`: 'begin' before a handler runs, in its own task, so that context variables set there reach it; then one
        of 'done', 'retried' (requeued), 'rejected' (a dead letter, also after its last try) and 'lost' (its lease).
        'started' (the service lets it take messages), 'stopping' and 'stopped' concern the worker itself. Raises
        `INVALID_REQUEST` for an event that doesn't exist.
        """

        def add(hook: H) -> H:
            self._events.add(event, hook)
            return hook

        return add

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by queue, those of periodic jobs included."""
        return dict(self._handlers)

    # ------------------------------------------------------------------------------------------ enqueueing

    async def enqueue(
        self,
        function: Union[Callable[[T], Any], Callable[[T, Message], Any]],
        value: T,
        *,
        delay: float = 0,
        priority: int = 5,
        headers: Optional[Dict[str, str]] = None,
    ) -> Enqueued:
        """Publish a message for a handler: `await worker.enqueue(send, Email(…))`.

        `function`: the handler, as it was decorated. `value`: the message. `delay`: seconds until it may be handled, by
        default 0. `priority`: 0..9, 9 first, by default 5. `headers`: texts by name, by default none. Raises what
        `queue.publish` does, and `INVALID_REQUEST` for a function that isn't a handler.
        """
        handler = self._by_function.get(function)
        if handler is None:
            raise SynapError("INVALID_REQUEST", f"{function!r} handles no queue of this worker")
        published = await self.client.queue.publish(handler.queue, value, priority, headers, delay=delay)
        return Enqueued(published.message_id, handler.queue, self.client, handler.result_ttl is not None)

    # ------------------------------------------------------------------------------------------ running

    async def run(self, *, handle_signals: bool = True, queues: Optional[Collection[str]] = None) -> None:
        """Work until `stop` is called, or SIGTERM or SIGINT arrives; a second signal cancels the handlers.

        Stopping leases no more messages, waits up to `grace` seconds for handlers that run, and requeues the rest
        without delay. Retries while the service can't be reached. `handle_signals`: whether to handle the signals, by
        default true (in the main thread). `queues`: run only the handlers of these, by default all. Raises
        `INVALID_REQUEST` for a queue without a handler, for more than 100 queues (each periodic job has one) and for
        a worker that runs already, and the error of a service that refuses the client.
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

    @property
    def stopping(self) -> bool:
        """Whether it runs and is being stopped."""
        return self._runner is not None and self._runner.stopping

    async def run_once(self, *, queues: Optional[Collection[str]] = None) -> Drained:
        """Handle the messages that are ready now, one after the other, and return counts of their outcomes. For tests.

        Everything runs in this task, plain functions too, without a thread. A requeued message waits for its delay:
        with a test clock, advance it and call this again. `queues`: as for `run`. Raises `INVALID_REQUEST` as `run`
        does.
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
            known = ", ".join(map(repr, sorted(self._handlers)[:10])) or "none"
            raise SynapError("INVALID_REQUEST", f"this worker has no handler for {what}; it has those of: {known}")
        if len(handlers) > MAX_QUEUES:
            most = f"{MAX_QUEUES} queues, each periodic job's counted"
            raise SynapError("INVALID_REQUEST", f"a worker takes from {most}, not {len(handlers)}; name some of them")
        options = Options(self.concurrency, self.lease, self.grace, self.processes)
        self._runner = Runner(self.client, handlers, self._jobs, options, self._events)
        return self._runner

    def __repr__(self) -> str:
        return f"<Worker of {self.client!r}: {', '.join(self._handlers) or 'no handlers'}>"


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def _check_timeout(timeout: Optional[float]) -> None:
    if timeout is not None:
        check_number("timeout", timeout)
        if not timeout:
            raise invalid("timeout", "more than 0 seconds", timeout)
