"""The demo's producer: publishes one task for every file, the smaller the more urgent."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Optional

from synap import AsyncSynapClient
from synap.demo import library, names
from synap.demo.processes import lifeline

IN_FLIGHT = 100


async def produce(url: str, count: Optional[int], retries: int) -> None:
    """Publish all tasks, up to `IN_FLIGHT` at once."""
    tasks = iter(library.files(count))
    async with AsyncSynapClient(url=url, retries=retries, retry_max_delay=1.0) as client:

        async def publish() -> None:
            for path, size in tasks:
                size_class = library.size_class(size)
                await client.queue.publish(
                    names.QUEUE,
                    {"path": path, "size": size, "class": size_class.name},
                    priority=size_class.priority,
                    headers={"source": "standard-library"},
                )

        await asyncio.gather(*(publish() for _ in range(IN_FLIGHT)))


if __name__ == "__main__":
    lifeline(lambda: os._exit(0))
    asyncio.run(produce(sys.argv[1], int(sys.argv[2]) or None, int(sys.argv[3])))
