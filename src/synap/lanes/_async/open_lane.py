"""Which lane a client takes: the one its URL and its `transport` option call for, and what the server there offers.

That a server doesn't offer the native lane is remembered for a while, by all clients of this process together.
"""

from __future__ import annotations

from typing import Callable

from synap.config import ClientConfig, Target
from synap.lanes import known
from synap.lanes._async.base import AsyncLane
from synap.lanes.errors import NotOffered
from synap.lanes.inprocess.lane import AsyncLocalLane
from synap.wire.codec import Codec

__all__ = ["async_open_lane"]


async def async_open_lane(
    config: ClientConfig,
    target: Target,
    codec: Codec,
    connected: Callable[[], None],
    disconnected: Callable[[str], None],
) -> AsyncLane:
    """Return a lane that has reached the service; raises what `AsyncLane.connect` does."""
    if target.in_process:
        return await _reach(AsyncLocalLane(config, target, codec), connected, disconnected)
    place = (target.host, target.port)
    wants = config.transport
    if wants == "native" or (wants == "auto" and config.keep_alive and not known.remembered(place)):
        from synap.lanes.native import AsyncNativeLane

        try:
            return await _reach(AsyncNativeLane(config, target, codec), connected, disconnected)
        except NotOffered:
            if wants == "native":
                raise
            known.remember(place)
    from synap.lanes._async.http import AsyncHttpLane

    return await _reach(AsyncHttpLane(config, target, codec), connected, disconnected)


async def _reach(lane: AsyncLane, connected: Callable[[], None], disconnected: Callable[[str], None]) -> AsyncLane:
    lane.connected = connected
    lane.disconnected = disconnected
    try:
        await lane.connect()
    except BaseException:  # being cancelled too: nobody else would close what is under way
        await lane.close()
        raise
    return lane
