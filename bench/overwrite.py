"""Writes over the same keys at a steady rate, as a program of its own.

python -m bench.overwrite URL KEYS RATE SECONDS
"""

from __future__ import annotations

import asyncio
import sys
import time

from synap import AsyncSynapClient

__all__ = ["overwrite"]

TEXT = "x" * 100
WRITERS = 8


async def overwrite(url: str, keys: int, rate: float, seconds: float) -> None:
    """Write `rate` values of 100 bytes a second over `keys` keys, for `seconds`."""
    began = time.perf_counter()
    written = 0

    async def write(client: AsyncSynapClient) -> None:
        nonlocal written
        while (passed := time.perf_counter() - began) < seconds:
            if written > rate * passed:
                await asyncio.sleep(0.001)
                continue
            written += 1
            await client.kv.set(f"stall:{written % keys}", TEXT)

    async with AsyncSynapClient(url=url) as client:
        await asyncio.gather(*(write(client) for _ in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(overwrite(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
