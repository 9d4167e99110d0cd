"""Lease messages, run their handlers, settle them: the main loop of one worker process."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Awaitable, Callable, Deque, Dict, List, Mapping, Optional, Tuple

from synap.client._async.client import AsyncSynapClient
from synap.client.retry import is_transient
from synap.errors import MessageNotFoundError, QueueNotFoundError, SynapError, TimeoutError
from synap.results import QueueMessage
from synap.worker.events import Events, WorkerEvent
from synap.worker.execution import Execution
from synap.worker.handlers import Handler, Reject, Retry
from synap.worker.leases import Leases
from synap.worker.message import Message
from synap.worker.outcomes import Drained, Outcomes
from synap.worker.pace import Pace
from synap.worker.periodic import Job
from synap.worker.presence import Presence
from synap.worker.settling import Settler

log = logging.getLogger("synap.worker")

POLL_SECONDS = 60.0
"""Seconds that a request for messages waits at the service."""
MAX_UNSETTLED = 50
"""Settlements in flight beyond which no messages are leased."""
CHECK_INTERVAL = 300.0
"""Seconds between checks that the queues are as `prepare` left them: somebody may have deleted or purged one."""


@dataclass(frozen=True)
class Options:
    """The options of a worker; durations are seconds."""

    concurrency: int
    lease: float
    grace: float
    processes: int


class Runner:
    """Runs handlers until it is stopped; made for one `run()` or `run_once()`."""

    def __init__(
        self,
        client: AsyncSynapClient,
        handlers: Mapping[str, Handler],
        jobs: Mapping[str, Job],
        options: Options,
        events: Events,
    ) -> None:
        self._client = client
        self._handlers = handlers
        self._jobs = jobs
        self._options = options
        self._events = events
        self._order: List[str] = list(handlers)
        self._outcomes = Outcomes(handlers, events)
        self._leases = Leases(client, options.lease, self._outcomes.lease_lost)
        self._room = asyncio.Event()
        """Set when more messages may be wanted, or all may be handled: a handler, or a settlement, has ended."""
        self._settler = Settler(client, options.lease, self._wants_one, self._leased_with_ack, self._room.set)
        self._execution = Execution(options.concurrency, options.processes, jobs, self._next)
        self._active: Dict[asyncio.Task[None], Tuple[Message, float]] = {}
        """By its task: each message that is being handled, and when that began."""
        self._prefetched: Deque[Message] = deque()
        self._fetching = False
        self._taking = False
        self._stopping = asyncio.Event()
        self._given_up = False
        self._pace = Pace(handlers, jobs, options.concurrency, options.lease)

    # ------------------------------------------------------------------------------------------ start and stop

    async def prepare(self) -> None:
        """Create the queues of the handlers, with their options, and have periodic jobs follow their schedules."""
        for queue, job in self._jobs.items():
            if queue in self._handlers:
                await job.prepare(self._client)
        await self._restore()

    async def _restore(self) -> None:
        """Create missing queues and ticks of periodic jobs, and set the queues' options."""
        for queue, handler in self._handlers.items():
            if queue in self._jobs:
                await self._jobs[queue].restore(self._client)
            elif handler.retries is not None:
                await self._client.queue.create(queue, max_retries=handler.retries)

    async def run(self) -> None:
        """Work until `stop` is called, then wait up to `grace` seconds for the handlers that run."""
        await self._once_reachable(self.prepare)
        listed = Presence(self._client, self._order, self._options.concurrency, self._running)
        self._outcomes.presence = listed
        presence = asyncio.ensure_future(listed.run())
        renewing = asyncio.ensure_future(self._leases.run())
        fetching = asyncio.ensure_future(self._fetch())
        keeping = asyncio.ensure_future(self._restore_regularly())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({fetching, renewing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            self._events.emit(WorkerEvent("stopping"))
            await self._cancel(fetching)
            await self._finish()
        finally:
            self._stopping.set()
            await self._cancel(fetching)
            await self._give_up()
            await self._settler.drain()
            await self._cancel(renewing, keeping, stopping, presence)
            await listed.leave()
            self._execution.close()
            self._events.emit(WorkerEvent("stopped"))
            await self._events.close()
        for task in (fetching, renewing):
            if not task.cancelled():
                task.result()  # raises what ended it

    def _running(self) -> List[Tuple[str, str, float]]:
        """Return handler name, queue and seconds since the start for each message being handled."""
        now = monotonic()
        return [
            (self._handlers[message.queue].name, message.queue, now - began) for message, began in self._active.values()
        ]

    def stop(self) -> None:
        """Lease no more messages, and let `run` end. A second call cancels the handlers that still run."""
        if self._stopping.is_set():
            self._given_up = True
            for task in list(self._active):
                task.cancel()
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called, or an error ends `run`."""
        return self._stopping.is_set()

    @property
    def lingers(self) -> bool:
        """Whether a thread still runs a handler that was given up."""
        return bool(self._execution.overrunning)

    async def run_once(self) -> Drained:
        """Handle the ready messages one after the other in this task, until there are none."""
        self._execution.inline = True
        self._outcomes.drained = drained = Drained()
        await self.prepare()
        while True:
            found = await self._lease(1, 0)
            if not found:
                return drained
            try:
                await self._handle(self._message(found[0]))
            finally:
                await self._settler.drain()

    async def _once_reachable(self, work: Callable[[], Awaitable[None]]) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                await work()
                return
            except SynapError as error:
                await self._back_off(error, attempt)
                attempt += 1

    async def _restore_regularly(self) -> None:
        """Restore the queues, and ticks of periodic jobs, that were deleted, purged, or lost by the service."""
        while True:
            # At random, so that workers started together don't ask together.
            await asyncio.sleep(random.uniform(CHECK_INTERVAL / 2, CHECK_INTERVAL))
            try:
                await self._restore()
            except SynapError as error:
                log.warning("the queues could not be checked: %s", error)

    async def _back_off(self, error: SynapError, attempt: int) -> None:
        """Back off after a transient error; raises any other."""
        if not is_transient(error) and not isinstance(error, TimeoutError):
            raise error
        log.warning("the service can't be reached, retrying: %s", error)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), min(5.0, 0.1 * 2 ** min(attempt, 10)))

    async def _cancel(self, *tasks: asyncio.Future[Any]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(set(tasks))

    async def _finish(self) -> None:
        """Wait until all leased messages are handled, up to `grace` seconds."""
        until = monotonic() + self._options.grace
        while (self._active or self._prefetched or self._taking) and not self._given_up and monotonic() < until:
            self._room.clear()
            self._start_next()
            try:
                await asyncio.wait_for(self._room.wait(), max(0.0, until - monotonic()))
            except asyncio.TimeoutError:
                return

    async def _give_up(self) -> None:
        """Cancel the handlers that still run, and requeue all messages without delay."""
        self._given_up = True
        self._requeue_prefetched()
        running = list(self._active)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=5)

    def _requeue_prefetched(self) -> None:
        while self._prefetched:
            message = self._prefetched.popleft()
            self._leases.remove(message)
            # One whose requeue fails is redelivered when its lease is over.
            self._settler.nack(message, True, 0.0, lambda error, answer: None)

    # ------------------------------------------------------------------------------------------ leasing messages

    async def _fetch(self) -> None:
        """Lease messages whenever handlers are free."""
        attempt = 0
        started = False
        while not self._stopping.is_set():
            want = 0 if self._taking or self._settler.about_to_send else self._wanted()  # that may take one with it
            if want <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            self._fetching = True
            try:
                self._order.append(self._order.pop(0))  # round robin, so that no queue starves
                # The first time without waiting: only the answer says that this worker may take messages there.
                found = await self._lease(want, POLL_SECONDS if started else 0)
                attempt = 0
            except QueueNotFoundError as error:
                log.warning("%s; it is created again", error.message)
                await self._once_reachable(self._restore)
                continue
            except SynapError as error:
                await self._back_off(error, attempt)
                attempt += 1
                continue
            finally:
                self._fetching = False
            if not started:
                started = True
                self._events.emit(WorkerEvent("started"))
            for leased in found:
                self._arrived(leased)

    async def _lease(self, most: int, timeout: float) -> List[QueueMessage]:
        """Lease up to `most` messages, from the first queues before the others, waiting up to `timeout` seconds."""
        return await self._client.queue.consume_many(
            self._order, max=most, timeout=timeout, ack_deadline=self._options.lease
        )

    def _free(self) -> int:
        return self._options.concurrency - len(self._active) - len(self._execution.overrunning)

    def _wanted(self) -> int:
        """Return how many messages to ask for now; none while more than half of the prefetched ones are left."""
        reserve = self._pace.reserve()
        if self._settler.in_flight > MAX_UNSETTLED or (self._prefetched and len(self._prefetched) > reserve // 2):
            return 0
        return min(1000, self._free() + reserve - len(self._prefetched))

    def _wants_one(self) -> bool:
        """Return whether the next acknowledgement may lease the next message in the same request."""
        one = (
            not self._stopping.is_set()
            and not self._execution.inline  # one after the other
            and not self._fetching
            and not self._taking
            and len(self._order) == 1
            and not self._prefetched
            and self._wanted() == 1
        )
        self._taking = self._taking or one
        return one

    def _leased_with_ack(self, leased: Optional[QueueMessage[Any]]) -> None:
        """Process the message that came with an acknowledgement."""
        self._taking = False
        if leased is not None:
            self._arrived(leased)
        self._room.set()

    def _message(self, leased: QueueMessage[Any]) -> Message:
        message = Message.of(leased, self._client.config.format)
        self._leases.add(message)
        return message

    def _arrived(self, leased: QueueMessage[Any]) -> None:
        self._prefetched.append(self._message(leased))
        if self._given_up:  # it came with an acknowledgement that was on its way
            self._requeue_prefetched()
        self._start_next()

    def _start_next(self) -> None:
        """Start handling prefetched messages, up to `concurrency`."""
        while self._prefetched and self._free() > 0 and not self._given_up:
            message = self._prefetched.popleft()
            if self._leases.is_over(message):
                continue
            task = asyncio.get_running_loop().create_task(self._work(message))
            self._active[task] = message, monotonic()
            task.add_done_callback(self._ended)

    def _next(self) -> None:
        """Start the next message, since a handler has ended."""
        self._start_next()
        self._room.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._active.pop(task, None)  # there still if it was cancelled before it began
        self._next()
        if not task.cancelled() and task.exception() is not None:
            log.error("a message could not be handled", exc_info=task.exception())

    # ------------------------------------------------------------------------------------------ one message

    async def _work(self, message: Message) -> None:
        try:
            await self._handle(message)
        finally:  # before its acknowledgement is sent, so that the same request may take a message for the free place
            self._active.pop(asyncio.current_task(), None)  # type: ignore[arg-type] # there is one

    async def _handle(self, message: Message) -> None:
        handler = self._handlers[message.queue]
        if self._events.wanted("begin"):
            self._events.emit(self._outcomes.event("begin", message))
        job = self._jobs.get(message.queue)
        began = monotonic()
        error: Optional[BaseException] = None
        try:
            if job is None or job.is_due(message):
                await self._execution.call(handler, message)
            if job is not None:
                job.renew(message)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as raised:  # sys.exit() too ends a handler, not its worker
            if isinstance(raised, asyncio.CancelledError) and self._is_cancelled():
                self._return(message, "retried", 0.0, monotonic() - began, None)
                raise
            error = raised
        seconds = monotonic() - began
        self._pace.took(message.queue, seconds)
        if self._leases.is_over(message):
            return
        if error is None:
            error = await self._acknowledge(message, seconds)
        if error is not None:
            self._failed(handler, message, error, seconds)

    def _is_cancelled(self) -> bool:
        """Return whether this task was cancelled, and not only something that its handler awaited."""
        cancelling = getattr(asyncio.current_task(), "cancelling", None)  # Python 3.11 and newer
        return bool(cancelling()) if cancelling is not None else self._given_up or self._execution.inline

    # ------------------------------------------------------------------------------------------ settling

    async def _acknowledge(self, message: Message, seconds: float) -> Optional[BaseException]:
        """Acknowledge a message in one batch with the commands in its pipeline."""
        done = partial(self._outcomes.settled, self._outcomes.event("done", message, seconds), message)
        items = message.recorded()
        self._leases.remove(message)
        if not items:
            self._settler.ack(message, done)
            return None
        try:
            refused = await self._settler.ack_with(message, items)
        except SynapError as error:
            if isinstance(error, (MessageNotFoundError, QueueNotFoundError)) or is_transient(error):
                done(error, None)
                return None
            return error
        if refused is None:
            done(None, None)
        return refused  # then the batch was not applied

    def _failed(self, handler: Handler, message: Message, error: BaseException, seconds: float) -> None:
        """Give a message back after its handler's backoff; after `Reject`, dead-letter it."""
        self._outcomes.raised(error)
        if isinstance(error, Reject) and message.queue not in self._jobs:
            log.warning("%s rejected message %s of %s: %s", handler.name, message.message_id, message.queue, error)
            self._return(message, "rejected", 0.0, seconds, error)
            return
        if isinstance(error, Retry) and error.delay is not None:
            delay = error.delay
        else:
            delay = (self._jobs.get(message.queue) or handler).pause(message.retry_count)
        self._return(message, "retried", delay, seconds, error)

    def _return(self, message: Message, how: str, delay: float, seconds: float, error: Optional[BaseException]) -> None:
        """Give a message back: 'retried' after `delay` seconds, or 'rejected', as it is after its last try, too."""
        self._leases.remove(message)
        event = self._outcomes.event(how, message, seconds, delay, error)
        done = self._outcomes.tried if how == "retried" else self._outcomes.settled
        self._settler.nack(message, how == "retried", delay, partial(done, event, message))
