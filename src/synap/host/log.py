"""What a host and its log exchange: the changes of a turn, and the interface of a log that makes them durable."""

from __future__ import annotations

import time
from typing import List, Tuple

from synap.engine.journal import Record, Undo
from synap.errors import SynapError
from synap.host.base import Output, Session
from synap.host.timing import Sample

Held = Tuple[Session, List[Output]]
"""A session, and its output that waits for the disk."""


class Batch:
    """The changes of one turn: records for the log, undos, and the output that is held until they are on disk."""

    __slots__ = ("held", "records", "samples", "since", "undos")

    def __init__(self, records: List[Record], undos: List[Undo], held: List[Held], samples: List[Sample]) -> None:
        self.since = time.monotonic()
        self.records = records
        self.undos = undos
        self.held = held
        self.samples = samples
        """Timed requests whose answers are held."""


class Log:
    """The interface of a log that makes changes durable; `synap.storage` implements it."""

    holds = True
    """Whether output is held until its batch is on disk."""
    stalled = False
    """Whether so much waits for the disk that lanes should stop reading; checked after each report."""

    def submit(self, batch: Batch, alone: bool) -> bool:
        """Write a batch; returns True where it is on disk already (only where output is held).

        Else it calls `EngineHost.committed` with it later, on the host's thread, or `EngineHost.failed`. `alone`: all
        that was submitted before has been reported.
        """
        raise NotImplementedError

    def interrupted(self) -> SynapError:
        """Write nothing but what was submitted, since the host's state may be half changed.

        Returns what writes are refused with from now on.
        """
        raise NotImplementedError
