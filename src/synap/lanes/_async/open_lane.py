"""Open the lane that a client's URL and its `transport` option call for, and that the server there offers.

Which transport a server takes is remembered for a while (`synap.lanes.upgrades`).
"""

from __future__ import annotations

import logging
from typing import Callable

from synap.config import ClientConfig, Target
from synap.lanes import upgrades
from synap.lanes._async.base import AsyncLane
from synap.lanes.errors import HandshakeCut, NotOffered
from synap.lanes.inprocess.async_lane import AsyncLocalLane
from synap.lanes.io.network import AsyncNetwork
from synap.wire.codec import Codec

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

    server = (target.host, target.port)
    refused = False
    wants = config.transport
    if wants == "native" or (wants == "auto" and not upgrades.is_refused(server)):
        native = AsyncNativeLane(config, target, codec, network=network)
        try:
            lane = await _reach(native, begin, fail, deadline)
            upgrades.mark_answered(server)
            return lane
        except (NotOffered, HandshakeCut) as error:
            if wants == "native" or (isinstance(error, HandshakeCut) and not upgrades.mark_cut(server)):
                raise
            refused = True
            log.debug("%s takes no upgrade, trying a WebSocket: %s", target.authority, error.message)
    from synap.lanes.websocket import WebSocketOpening

    inside = AsyncNativeLane(config, target, codec, begin=WebSocketOpening, name="websocket", network=network)
    lane = await _reach(inside, begin, fail, deadline)
    if refused:
        upgrades.mark_refused(server)
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
