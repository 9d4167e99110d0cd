"""A service that lost its last events (a power cut with `--fsync no`): whoever follows hears the new ones."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any, List

import pytest

from synap import AsyncSynapClient
from synap.testing.server import ThrowawayServer, can_serve
from tests.helpers.patience import PATIENCE

pytestmark = pytest.mark.skipif(not can_serve(), reason="the service needs Python 3.10")


async def test_new_events_under_offsets_that_were_lost_are_delivered(tmp_path: Any) -> None:
    data, kept = tmp_path / "data", tmp_path / "kept"
    with ThrowawayServer(data=data, arguments=["--fsync", "no"]) as server:
        async with AsyncSynapClient(url=server.url, retries=50, retry_delay=0.02, retry_max_delay=0.2) as client:
            for number in range(3):
                await client.stream.publish("room", "before", number)
            server.stop()
            shutil.copytree(data, kept)
            server.start()
            seen: List[Any] = []
            subscription = await client.stream.subscribe("room", from_offset=0)
            for number in range(3, 6):
                await client.stream.publish("room", "lost", number)
            events = subscription.__aiter__()
            while len(seen) < 6:
                seen.append((await asyncio.wait_for(events.__anext__(), PATIENCE)).offset)
            server.kill()
            shutil.rmtree(data)
            shutil.copytree(kept, data)
            server.start()
            stats = await client.stream.stats("room")
            assert stats.newest_offset == 2
            while not (await client.stream.stats("room")).subscribers:
                await asyncio.sleep(0.01)
            published = await client.stream.publish("room", "new", "news")
            event = await asyncio.wait_for(events.__anext__(), PATIENCE)
            assert (event.offset, event.data) == (published.offset, "news")
            assert seen == list(range(6))
            await subscription.unsubscribe()
