"""One command in flight to a node, and the error of a function of the library."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Optional, Sequence, Tuple

import hiredis

from synap.cluster.running import Pending
from synap.errors import SynapError

pack: Callable[..., bytes] = hiredis.pack_command


def unavailable(text: str, may_have_happened: bool = False) -> SynapError:
    """Build the error for a node or cluster that can't be used now."""
    error = SynapError("SERVICE_UNAVAILABLE", text, {"retry_after": 1})
    error.may_have_happened = may_have_happened
    return error


def unanswered(address: object, error: BaseException) -> str:
    """Say why a node didn't answer: many of asyncio's errors have no text."""
    text = "no answer in time" if isinstance(error, asyncio.TimeoutError) else str(error) or type(error).__name__
    return f"{address}: {text}"


class Refused(Exception):
    """An error that a function of the library returned: the contract's `code`, and a `text`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class Call(Pending):
    """One command in flight to a partition's node, or (`partition` -1) on one connection."""

    __slots__ = (
        "_packed", "arguments", "asking", "attempts", "changes", "deadline", "fixed", "function", "keys", "number",
        "once", "partition", "redirects", "retried", "size", "uncertain",
    )  # fmt: skip

    def __init__(
        self,
        partition: int,
        function: bytes,
        keys: Sequence[bytes],
        arguments: Sequence[Any],
        *,
        retried: Tuple[int, ...] = (),
        changes: bool = True,
        once: bool = False,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self.partition = partition
        self.function = function
        self.keys = keys
        self.arguments = arguments
        self.retried = retried
        """Places of the arguments that say that a request may have been executed before."""
        self.changes = changes
        self.once = once
        """Whether it stores nothing, its answer included: no replica need have it, and where it may have been executed,
        it is not sent again."""
        self.fixed = fixed
        """Whether `arguments` is a whole command, not those of a function."""
        self.asking = False
        self.attempts = 0
        self.redirects = 0
        self.deadline = 0.0
        self.number = 0
        """Its place among the calls of its link."""
        self.uncertain = False
        """Whether an attempt may have been executed whose answer never came."""
        self.size = 0
        """What it counts for among the bytes under way; 0 once it has its result."""
        self._packed: Optional[bytes] = None

    def __lt__(self, other: Call) -> bool:
        return self.number < other.number

    @classmethod
    def plain(cls, command: Sequence[Any], partition: int = -1, changes: bool = False) -> Call:
        """Make a call of a command that is no function of the library."""
        return cls(partition, b"", (), command, changes=changes, fixed=True)

    def packed(self) -> bytes:
        """Return the bytes that go over the connection."""
        found = self._packed
        if found is None:
            if self.fixed:
                found = pack(tuple(self.arguments))
            else:
                word = b"FCALL" if self.changes else b"FCALL_RO"
                found = pack((word, self.function, len(self.keys), *self.keys, *self.arguments))
            self._packed = found
        return found

    def mark(self) -> None:
        """Note that an attempt may have been executed."""
        self.uncertain = True
        if self.retried:
            arguments = list(self.arguments)
            for place in self.retried:
                arguments[place] = b"1"
            self.arguments = arguments
            self._packed = None
