"""A worker as a program has it, for tests that run it in processes of its own and kill them."""

from __future__ import annotations

import asyncio
import os

from synap.worker import Message, Worker

NAME = os.environ.get("SYNAP_TEST_NAME", "app")

worker = Worker(concurrency=8, lease=float(os.environ.get("SYNAP_TEST_LEASE", "30")), grace=60)
"""Its client is that of SYNAP_URL."""


@worker.handles(NAME, retries=1_000_000, retry_delay=0)
async def count(value: int, message: Message) -> None:
    """Count a job once, together with its acknowledgement, and note every try beside it."""
    await worker.client.kv.incr(f"{NAME}:tries:{value}")
    with message.pipeline() as p:
        p.kv.incr(f"{NAME}:done:{value}")
        p.kv.incr(f"{NAME}:total")
    await asyncio.sleep(0.002)


@worker.handles(f"{NAME}:slow")
async def slow(value: float) -> None:
    """Say that it has begun, take its time, and say that it has ended."""
    await worker.client.kv.set(f"{NAME}:begun", value)
    await asyncio.sleep(value)
    await worker.client.kv.set(f"{NAME}:ended", value)


@worker.every(0.2, name=f"{NAME}:tick")
async def tick(message: Message) -> None:
    """Count how often each tick fires."""
    message.pipeline().kv.incr(f"{NAME}:tick:{message.message['due']}")
