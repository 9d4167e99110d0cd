"""The native lane in both colours. They are written apart on purpose: many calls on one connection, and one call on a
connection of a small pool, are different programs.
"""

from synap.lanes.native.async_lane import AsyncNativeLane
from synap.lanes.native.sync_lane import NativeLane

__all__ = ["AsyncNativeLane", "NativeLane"]
