"""The native lane in both colours. They are written apart on purpose: many calls on one connection, and one call on a
connection of a small pool, are different programs.
"""

from synap.transport.native_async import AsyncNativeLane
from synap.transport.native_sync import NativeLane

__all__ = ["AsyncNativeLane", "NativeLane"]
