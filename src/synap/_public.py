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
]
