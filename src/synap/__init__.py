"""The job of Redis, RabbitMQ and Kafka behind one small API, async and sync, from a notebook to a server.

`AsyncSynapClient` and `SynapClient` are the two clients; the rest is what goes in and comes out. What isn't listed here
may change at any time.
"""

from synap._version import __version__
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
from synap.results import (
    BatchResult,
    ClientInfo,
    Cursor,
    GetResult,
    HistoryResult,
    NackResult,
    PeekedMessage,
    PeekResult,
    PublishEventResult,
    PublishResult,
    PubSubStats,
    QueueMessage,
    QueueStats,
    RoomStats,
    ScanResult,
    SetResult,
    StreamEvent,
    TopicMessage,
)

__all__ = [
    "AsyncSynapClient",
    "AuthenticationError",
    "BatchResult",
    "ClientConfig",
    "ClientInfo",
    "ConnectionError",
    "Cursor",
    "EventsLostError",
    "GetResult",
    "Handle",
    "HistoryResult",
    "KeyNotFoundError",
    "Lock",
    "LockLostError",
    "MessageNotFoundError",
    "NackResult",
    "PeekResult",
    "PeekedMessage",
    "PermissionDeniedError",
    "Pipeline",
    "PubSubStats",
    "PublishEventResult",
    "PublishResult",
    "QueueMessage",
    "QueueNotFoundError",
    "QueueStats",
    "RateLimitError",
    "RoomNotFoundError",
    "RoomStats",
    "ScanResult",
    "SetResult",
    "StreamEvent",
    "Subscription",
    "SynapClient",
    "SynapError",
    "SyncLock",
    "SyncPipeline",
    "SyncSubscription",
    "TimeoutError",
    "TopicMessage",
    "__version__",
]
