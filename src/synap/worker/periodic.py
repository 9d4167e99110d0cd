"""Periodic jobs: one message at a time, delayed until it is due, replaced by the next when it is acknowledged.

The queue of a job holds one message at most, so however many workers start, one message is there; a queue hands a
message to one worker at a time, so a tick fires once; and it is replaced in the same atomic batch that acknowledges it,
so the chain doesn't break, whenever a process is killed. There is no polling and no leader.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable, Dict

from synap.client._async.client import AsyncSynapClient
from synap.errors import PermissionDeniedError, QueueNotFoundError, SynapError
from synap.worker.handlers import Handler
from synap.worker.message import Message
from synap.worker.schedule import Schedule

TOLERANCE = 1.0
"""Seconds a tick may come early: a queue's clock and a worker's differ."""
MAX_DELAY = 31_536_000.0
"""The longest delay of a message, in seconds."""


@dataclass(frozen=True)
class Job:
    """A handler that runs on a schedule, and its queue."""

    handler: Handler
    schedule: Schedule
    clock: Callable[[], float]

    @property
    def queue(self) -> str:
        return self.handler.queue

    async def prepare(self, client: AsyncSynapClient) -> None:
        """Have this schedule hold from now on, and drop the tick of a former one."""
        try:
            stored = (await client.kv.get(self.queue)).value
        except PermissionDeniedError:  # a key that may only write
            stored = (await client.kv.set(self.queue, self.schedule.text)).previous
        if stored == self.schedule.text:
            return
        if stored is not None:
            with suppress(QueueNotFoundError):
                await client.queue.purge(self.queue)
        # Not before: if the purge failed, it would not be tried again.
        await client.kv.set(self.queue, self.schedule.text)

    async def restore(self, client: AsyncSynapClient) -> None:
        """Create the job's queue, and publish its next tick, unless they are there."""
        with suppress(QueueNotFoundError, PermissionDeniedError):
            stats = await client.queue.stats(self.queue)
            if stats.depth + stats.pending + stats.delayed and not await self._drop_foreign(client):
                return
        await client.queue.create(self.queue, max_depth=1, max_retries=1_000_000, dead_letter=False)
        now = self.clock()
        tick = self.tick(now)
        try:
            await client.queue.publish(self.queue, tick, delay=self._delay(tick, now))
        except SynapError as error:
            if error.code != "QUEUE_FULL":  # then it is there already
                raise

    async def _drop_foreign(self, client: AsyncSynapClient) -> bool:
        """Drop a tick by a schedule that doesn't hold, if this one does; return whether there was one.

        A process of a former version, which still runs, has renewed a tick then. A key that may not look lets it be.
        """
        try:
            ticks = (await client.queue.peek(self.queue, state="delayed", limit=1)).messages
            if all(self._schedule_of(tick.message) == self.schedule.text for tick in ticks):
                return False
            if (await client.kv.get(self.queue)).value != self.schedule.text:
                return False
        except PermissionDeniedError:
            return False
        await client.queue.purge(self.queue)
        return True

    def tick(self, after: float) -> Dict[str, Any]:
        """Return the message of the first tick after a moment."""
        return {"due": self.schedule.after(after), "schedule": self.schedule.text}

    def _delay(self, tick: Dict[str, Any], now: float) -> float:
        return min(MAX_DELAY, max(0.0, float(tick["due"]) - now))

    def is_due(self, message: Message) -> bool:
        """Return whether a tick is due. It isn't where it is more than `MAX_DELAY` away, or where clocks differ."""
        return self._due(message) - self.clock() <= TOLERANCE

    def pause(self, retry_count: int) -> float:
        """Return the backoff in seconds after a failure: that of its handler, until the job's next time at most."""
        now = self.clock()
        return min(self.handler.pause(retry_count), max(TOLERANCE, self.schedule.after(now) - now))

    def renew(self, message: Message) -> None:
        """Add the next tick to the batch that acknowledges this one.

        After one that isn't due yet, that is the next by this clock: a clock that was ahead may have made it.
        """
        now = self.clock()
        tick = self.tick(max(now, self._due(message)) if self.is_due(message) else now)
        message.pipeline().queue.publish(self.queue, tick, delay=self._delay(tick, now))

    def _due(self, message: Message) -> float:
        tick = message.message
        due = tick.get("due") if isinstance(tick, dict) else None
        return float(due) if isinstance(due, (int, float)) else 0.0

    def _schedule_of(self, tick: Any) -> Any:
        """Return the schedule that a tick is by; this one for a tick that doesn't say."""
        return tick.get("schedule", self.schedule.text) if isinstance(tick, dict) else self.schedule.text
