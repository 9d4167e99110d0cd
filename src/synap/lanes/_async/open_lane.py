"""Open the lane that a client's URL and its `transport` option call for, and that the server there offers.

Which transport a server takes is remembered for a while, for all clients of this process.
"""

from __future__ import annotations

import logging
from typing import Callable

from synap.config import ClientConfig, Target
from synap.lanes import known
from synap.lanes._async.base import AsyncLane
from synap.lanes.errors import HandshakeCut, NotOffered
from synap.lanes.inprocess.async_lane import AsyncLocalLane
from synap.lanes.io.network import AsyncNetwork
from synap.wire.codec import Codec

__all__ = ["async_open_lane"]

log = logging.getLogger("synap.client")


async def async_open_lane(
    config: ClientConfig,
    target: Target,
    codec: Codec,
    network: AsyncNetwork,
    begin: Callable[[AsyncLane], None],
    fail: Callable[[AsyncLane], None],
    deadline: float,
) -> AsyncLane:
    """Return a lane that has reached the service by `deadline`; raises what `AsyncLane.connect` does.

    `begin` is called with each lane before it connects (closing that lane aborts the attempt), and `fail` with one that
    could not connect.
    """
    if target.in_process:
        return await _reach(AsyncLocalLane(config, target, codec), begin, fail, deadline)
    from synap.lanes.native.async_lane import AsyncNativeLane

    place = (target.host, target.port)
    refused = False
    wants = config.transport
    if wants == "native" or (wants == "auto" and not known.remembered(place)):
        native = AsyncNativeLane(config, target, codec, network=network)
        try:
            lane = await _reach(native, begin, fail, deadline)
            known.kept(place)
            return lane
        except (NotOffered, HandshakeCut) as error:
            if wants == "native" or (isinstance(error, HandshakeCut) and not known.cut(place)):
                raise
            refused = True
            log.debug("%s takes no upgrade, trying a WebSocket: %s", target.authority, error.message)
    from synap.lanes.websocket import WebSocketOpening

    inside = AsyncNativeLane(config, target, codec, begin=WebSocketOpening, name="websocket", network=network)
    lane = await _reach(inside, begin, fail, deadline)
    if refused:
        known.remember(place)
    return lane


async def _reach(
    lane: AsyncLane, begin: Callable[[AsyncLane], None], fail: Callable[[AsyncLane], None], deadline: float
) -> AsyncLane:
    begin(lane)
    try:
        await lane.connect(deadline)
    except BaseException:  # cancellation too: nobody else closes this lane
        fail(lane)
        await lane.close()
        raise
    return lane
