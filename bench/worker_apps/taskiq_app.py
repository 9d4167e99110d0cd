"""taskiq with Redis streams, which acknowledge."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Optional

from taskiq_redis import RedisStreamBroker

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from bench.worker_apps.board import ran

broker = RedisStreamBroker(os.environ["BENCH_URL"])


@broker.task(task_name="job")
async def job(sent: Optional[float]) -> None:
    """Do nothing."""
    ran(sent)


async def enqueue(count: int, pause: float) -> None:
    """Enqueue jobs, with a pause in between where their latency is measured."""
    await broker.startup()
    for _ in range(count):
        await job.kiq(time.monotonic())
        if pause:
            await asyncio.sleep(pause)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(enqueue(int(sys.argv[1]), float(sys.argv[2])))
