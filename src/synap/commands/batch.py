"""Batches: several commands in one request, and the error envelope."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import msgspec
from msgspec import Meta, Struct
from typing_extensions import Annotated

from synap import results
from synap.commands.command import Command, Flag
from synap.commands.fields import Payload, RequestNumber
from synap.errors import UNCERTAIN, SynapError

MAX_BATCH = 10_000
"""Commands in one batch."""


class BatchItem(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One command of a batch; its payload is decoded once the command is known.

    `number` makes it a request of its own in the caller's session, deduplicated like any other. Where one item has it,
    all must, and the batch can't be atomic.
    """

    command: str
    payload: msgspec.Raw = msgspec.Raw(b"")
    number: Optional[RequestNumber] = None


BatchItems = Annotated[List[BatchItem], Meta(max_length=MAX_BATCH, description="at most 10,000 commands")]


class BatchRequest(Payload):
    commands: BatchItems
    atomic: bool = False


class ErrorAnswer(Struct):
    """The error envelope."""

    code: str
    message: str
    details: Dict[str, Any] = {}

    @classmethod
    def of(cls, error: SynapError) -> ErrorAnswer:
        """Convert an error; `details` says whether its request may have taken effect all the same."""
        details = {**error.details, UNCERTAIN: True} if error.may_have_happened else error.details
        return cls(error.code, error.message, details)


class BatchOutcome(Struct, omit_defaults=True):
    """One command's outcome in a batch: `payload` where `status` is 'success', else `error`."""

    status: str
    payload: Any = None
    error: Optional[ErrorAnswer] = None


class BatchAnswer(Struct):
    results: List[BatchOutcome]


class BatchResults(Struct):
    """`BatchAnswer` as a client reads it."""

    results: List[results.BatchResult]


BATCH = Command(
    100,
    "batch",
    BatchRequest,
    BatchAnswer,
    "Run several commands, in order.",
    Flag.WRITE,
    result=BatchResults,
    bundle=True,
)
"""Not in `COMMANDS`: it is a kind of request, with a number for the native lane."""
READ_BATCH = Command(
    BATCH.code, "batch", BatchRequest, BatchAnswer, "Run several that only read.", result=BatchResults, bundle=True
)
"""A batch of reads, which a client may repeat. The same command to the service."""
