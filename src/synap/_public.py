"""What users import from `synap`, which imports this when the first of the names is asked for."""

from synap.client._async.client import AsyncSynapClient
from synap.client._async.lock import Lock
from synap.client._async.pipeline import Pipeline
from synap.client._async.subscription import Subscription
from synap.client._sync.client import SynapClient
from synap.client._sync.lock import Lock as SyncLock
from synap.client._sync.pipeline import Pipeline as SyncPipeline
from synap.client._sync.subscription import Subscription as SyncSubscription
from synap.client.handles import Handle
from synap.config import ClientConfig
from synap.errors import (
    AuthenticationError,
    ConnectionError,
    EventsLostError,
    KeyNotFoundError,
    LockLostError,
    MessageNotFoundError,
    PermissionDeniedError,
    QueueNotFoundError,
    RateLimitError,
    RoomNotFoundError,
    SynapError,
    TimeoutError,
)
from synap.results import *
from synap.results import __all__ as __all__

__all__ += (
    "AsyncSynapClient",
    "AuthenticationError",
    "ClientConfig",
    "ConnectionError",
    "EventsLostError",
    "Handle",
    "KeyNotFoundError",
    "Lock",
    "LockLostError",
    "MessageNotFoundError",
    "PermissionDeniedError",
    "Pipeline",
    "QueueNotFoundError",
    "RateLimitError",
    "RoomNotFoundError",
    "Subscription",
    "SynapClient",
    "SynapError",
    "SyncLock",
    "SyncPipeline",
    "SyncSubscription",
    "TimeoutError",
)
