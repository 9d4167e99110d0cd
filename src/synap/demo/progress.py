"""The progress of the demo's job, from the events of the room and the messages of the topics.

A file may have several events (a redelivered task is started and hashed again); files are counted, not
events.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, Optional, Set, Tuple

from synap import StreamEvent
from synap.demo import library, names

RATE_WINDOW = 1.5
"""Seconds over which rates are taken."""


@dataclass
class Worker:
    """One worker: tasks it has begun and not finished, files it has hashed, its state."""

    name: str
    pid: int
    holds: Set[str] = field(default_factory=set)
    hashed: int = 0
    taken_over: int = 0
    """Tasks that were redelivered from another worker."""
    joined: bool = False
    state: str = "starting"


@dataclass
class Machine:
    """A node or a gateway of a cluster: its name, and its role or state."""

    name: str
    state: str


@dataclass
class Progress:
    """The state of the job."""

    total: int
    url: str
    storage: str
    title: str = "synap demo"
    workers: Dict[str, Worker] = field(default_factory=dict)
    machines: Dict[str, Machine] = field(default_factory=dict)
    """Of a cluster."""
    events_of: Dict[str, str] = field(default_factory=dict)
    """What was killed of a cluster, and how that went."""
    hashed: Set[str] = field(default_factory=set)
    events: int = 0
    newest: int = -1
    """The offset of the last event."""
    messages: Dict[str, int] = field(default_factory=lambda: {known.name: 0 for known in library.CLASSES})
    feed: Deque[str] = field(default_factory=lambda: deque(maxlen=6))
    depth: int = 0
    pending: int = 0
    operations: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: Optional[float] = None
    phase: str = "starting"
    to_kill: bool = False
    """Whether a worker is to be killed in the middle."""
    victim: Optional[str] = None
    lost: int = 0
    """Tasks the killed worker had begun and not finished. The leases it held may be more: of finished ones too."""
    samples: Deque[Tuple[float, int, int]] = field(default_factory=deque)

    @property
    def elapsed(self) -> float:
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    def on_event(self, event: StreamEvent) -> None:
        """Process an event of the room."""
        self.events += 1
        self.newest = event.offset
        data: Dict[str, Any] = event.data
        worker = self.workers[data["worker"]]
        if event.event_type == names.JOINED:
            worker.joined = True
            worker.state = "working"
            self.note(f"{worker.name} joined (process {worker.pid})")
            return
        path = data["path"]
        if event.event_type == names.STARTED:
            worker.holds.add(path)
            if data["retry"]:
                worker.taken_over += 1
                self.note(f"{worker.name} takes over {path}")
        else:
            worker.holds.discard(path)
            worker.hashed += 1
            self.hashed.add(path)
            self.note(f"{worker.name} hashed {path}")

    def on_message(self, topic: str, message: Any) -> None:
        """Process a message of a topic."""
        self.messages[topic.rpartition(".")[2]] += 1

    def note(self, line: str) -> None:
        """Add a line to the feed."""
        self.feed.append(line)

    def sample(self) -> None:
        """Record the current counts, for the rates."""
        now = time.monotonic()
        self.samples.append((now, len(self.hashed), self.operations))
        while len(self.samples) > 2 and self.samples[0][0] < now - RATE_WINDOW:
            self.samples.popleft()

    def rates(self) -> Tuple[float, float]:
        """Return files and operations per second: recent ones, and at the end those of the whole run."""
        if self.ended is not None:
            return len(self.hashed) / max(self.elapsed, 1e-9), self.operations / max(self.elapsed, 1e-9)
        if len(self.samples) < 2:
            return 0.0, 0.0
        then, files, operations = self.samples[0]
        now, files_now, operations_now = self.samples[-1]
        seconds = max(now - then, 1e-9)
        return (files_now - files) / seconds, (operations_now - operations) / seconds
