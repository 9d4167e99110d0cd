"""arq with Redis."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any, Dict, Optional

from arq import create_pool
from arq.connections import RedisSettings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from bench.worker_apps.board import ran

logging.getLogger("arq.worker").setLevel(logging.WARNING)  # else it writes two lines for each job
REDIS = RedisSettings.from_dsn(os.environ["BENCH_URL"])


async def job(ctx: Dict[Any, Any], sent: Optional[float]) -> None:
    """Do nothing."""
    ran(sent)


class WorkerSettings:
    """What arq's command line takes; ten at once is its default."""

    functions = (job,)
    redis_settings = REDIS
    keep_result = 0


async def enqueue(count: int, pause: float) -> None:
    """Enqueue jobs, with a pause in between where their latency is measured."""
    pool = await create_pool(REDIS)
    for _ in range(count):
        await pool.enqueue_job("job", time.monotonic())
        if pause:
            await asyncio.sleep(pause)
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(enqueue(int(sys.argv[1]), float(sys.argv[2])))
