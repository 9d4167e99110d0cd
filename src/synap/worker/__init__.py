"""Run functions for the messages of queues: `Worker`.

Everything here stands on `AsyncSynapClient`, so a worker runs the same on `memory://`, `file://` (one process), a
server and a cluster. Cron expressions and `--reload` need the extra `worker`.
"""

from synap.worker.app import Worker
from synap.worker.events import WorkerEvent
from synap.worker.handlers import Handler, Overrun, Reject, Retry
from synap.worker.message import Lost, Message, MessagePipeline
from synap.worker.outcomes import Drained
from synap.worker.pools import ProcessDied
from synap.worker.results import Enqueued

__all__ = [
    "Drained",
    "Enqueued",
    "Handler",
    "Lost",
    "Message",
    "MessagePipeline",
    "Overrun",
    "ProcessDied",
    "Reject",
    "Retry",
    "Worker",
    "WorkerEvent",
]
