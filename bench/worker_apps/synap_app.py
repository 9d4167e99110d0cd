"""Synap's worker."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Optional

from bench.worker_apps.board import ran
from synap import AsyncSynapClient
from synap.worker import Worker

worker = Worker(os.environ["BENCH_URL"], concurrency=int(os.environ.get("BENCH_CONCURRENCY", "20")))


@worker.handles("jobs")
async def job(sent: Optional[float]) -> None:
    """Do nothing."""
    ran(sent)


async def enqueue(count: int, pause: float) -> None:
    """Enqueue jobs, with a pause in between where their latency is measured."""
    async with AsyncSynapClient(url=os.environ["BENCH_URL"]) as client:
        worker.client = client
        for _ in range(count):
            await worker.enqueue(job, time.monotonic())
            if pause:
                await asyncio.sleep(pause)


if __name__ == "__main__":
    asyncio.run(enqueue(int(sys.argv[1]), float(sys.argv[2])))
