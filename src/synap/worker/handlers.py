"""Handlers: functions, and how their failures are retried."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from math import inf
from typing import Any, Callable, Optional

from synap.errors import SynapError, invalid

POOLS = ("loop", "thread", "process")
"""Where a function runs: coroutine functions in the event loop, plain ones in a thread, or a process where asked."""


class Retry(Exception):
    """Raised by a handler: requeue the message, to be retried in `delay` seconds.

    Without a `delay` the handler's own backoff applies. It counts as an attempt, like any other failure. Raises
    `INVALID_PAYLOAD` for a delay that is no number, 0 or more.
    """

    def __init__(self, delay: Optional[float] = None, reason: str = "") -> None:
        super().__init__(reason or "the handler asked for a retry")
        if delay is not None:
            check_number("delay", delay)
        self.delay = delay


class Reject(Exception):
    """Raised by a handler: never retry this message; it becomes a dead letter at once."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler rejected the message")


class Overrun(Exception):
    """Raised for a handler that takes longer than its `timeout`."""


@dataclass(frozen=True)
class Handler:
    """A `function`, its `queue` and the options of `Worker.handles`, where they are described.

    `name` is for logs and events. `type`: None for no conversion. `retries`: None for the queue's own. `retry_delay`,
    `retry_max_delay`, `timeout` and `result_ttl` are seconds, `backoff` is a factor. `pool` is one of `POOLS`.
    `takes_message`: whether the function has a second parameter, for the message.
    """

    name: str
    queue: str
    function: Callable[..., Any]
    type: Any = None
    retries: Optional[int] = None
    retry_delay: float = 1.0
    backoff: float = 2.0
    retry_max_delay: float = 3600.0
    timeout: Optional[float] = None
    pool: str = "loop"
    result_ttl: Optional[int] = None
    takes_message: bool = True

    def pause(self, retry_count: int) -> float:
        """Return the backoff in seconds after a failure, of which there were `retry_count` before."""
        if self.retry_delay == 0:
            return 0.0
        exponent = min(retry_count, 64)  # beyond that a float might not hold it, and the cap applies long before
        return min(self.retry_max_delay, self.retry_delay * self.backoff**exponent)


def check_number(name: str, value: object) -> None:
    """Raise `INVALID_PAYLOAD` for an argument that is no finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < inf:
        raise invalid(name, "a number, 0 or more", value)


def pool_of(function: Callable[..., Any], pool: Optional[str]) -> str:
    """Return the pool of a function; raises `INVALID_REQUEST` for one it can't run in."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise SynapError("INVALID_REQUEST", f"{function!r} is a generator: calling it runs nothing")
    is_async = inspect.iscoroutinefunction(function)
    if pool is None:
        return "loop" if is_async else "thread"
    if pool not in POOLS:
        raise SynapError("INVALID_REQUEST", f"pool must be 'loop', 'thread' or 'process', got {pool!r}")
    if is_async and pool != "loop":
        raise SynapError("INVALID_REQUEST", f"{function!r} is a coroutine function, so it can't run in a {pool}")
    return pool


def parameter_count(function: Callable[..., Any]) -> int:
    """Return how many positional arguments a function takes, 2 at most."""
    count = 0
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return 1
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return 2
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            count += 1
    return min(count, 2)
