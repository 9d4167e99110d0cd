"""A worker of the demo: leases tasks, hashes files, stores digests, publishes to the room and the topic, acknowledges.

A task may come twice: when a worker was killed between its work and the acknowledgement, or was so slow that its lease
expired. All that a worker does may be done twice: the digest is stored under the file's own key, and progress counts
files, not events.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Dict

from synap import AsyncSynapClient, ConnectionError, MessageNotFoundError, SynapError
from synap.demo import library, names
from synap.demo.processes import lifeline


async def work(client: AsyncSynapClient, name: str, hangs_from: float) -> None:
    """Handle tasks one after the other, for ever; hang with one that begins at event `hangs_from` or later."""
    while True:
        message = await client.queue.consume(names.QUEUE, timeout=30, ack_deadline=names.ACK_DEADLINE)
        if message is None:
            continue
        task: Dict[str, Any] = message.message
        path = task["path"]
        note = {"path": path, "worker": name, "retry": message.retry_count}
        started = await client.stream.publish(names.ROOM, names.STARTED, note)
        if started.offset >= hangs_from:
            await asyncio.get_running_loop().create_future()
        digest = library.digest(path)
        await client.kv.set(names.key(path), {"sha256": digest, "size": task["size"], "worker": name})
        try:
            await client.pubsub.publish(names.topic(task["class"]), {"path": path, "sha256": digest})
        except SynapError as error:
            if not error.may_have_happened and not isinstance(error, ConnectionError):
                raise
            # At most once: it may or may not have been delivered.
        await client.stream.publish(names.ROOM, names.HASHED, note)
        try:
            await client.queue.ack(names.QUEUE, message.message_id)
        except MessageNotFoundError:
            # The lease expired, so the task was redelivered. The stored digest is right all the same.
            continue


async def run(url: str, name: str, slots: int, retries: int, hangs_from: float) -> None:
    """Work on up to `slots` tasks at once until the demo ends; hang with those begun at event `hangs_from` or later."""
    async with AsyncSynapClient(url=url, pool_size=slots + 1, retries=retries, retry_max_delay=1.0) as client:
        await client.stream.publish(names.ROOM, names.JOINED, {"worker": name})
        await asyncio.gather(*(work(client, name, hangs_from) for _ in range(slots)))


if __name__ == "__main__":
    lifeline(lambda: os._exit(0))
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
